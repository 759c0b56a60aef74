"""Every family of models through the real nodes of the real host, each as a small random model of its own layout."""

import pytest
import torch
from safetensors.torch import save_file

from tests.support.family_models import FAMILIES
from tests.support.toy_models import assert_same_bits, loaded_weights, unload

BATCH = 4
DENSITY = 0.05
# What suits a random model of that size; nothing of it holds for real ones.
LEARNING_RATES = {"SD1.5": 1e-2, "SD2.1": 3e-3, "SDXL": 1e-3, "SD3": 1e-2, "Flux": 1e-2, "Wan 2.1": 3e-2}
STEPS = {"SD1.5": 12, "SD2.1": 12, "SDXL": 8, "SD3": 20, "Flux": 16, "Wan 2.1": 20}
PREDICTIONS = {
    "SD1.5": "EPS", "SD2.1": "V_PREDICTION", "SDXL": "EPS", "SD3": "FLOW", "Flux": "FLUX", "Wan 2.1": "FLOW",
}  # fmt: skip


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(comfy, family):
    """The family's MODEL, as the host's own loader node makes it of a file."""
    path = comfy.base / "models" / "diffusion_models" / f"{family.name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(family.state_dict(), path)
    model = comfy.execute("UNETLoader", unet_name=path.name, weight_dtype="default").outputs[0]
    with torch.inference_mode():
        loaded_weights(model)
    yield model
    unload()
    path.unlink()


@pytest.fixture(scope="module")
def dense(comfy, family):
    """(loss, weight key → gradient) by plain autograd through the host's own layers, with fp32 weights."""
    from comfy import model_management

    with torch.inference_mode(False), torch.enable_grad(), pytest.MonkeyPatch.context() as patch:
        # Without it the host takes attention kernels that have no gradient.
        patch.setattr(model_management, "in_training", True)
        patcher = family.model()
        network = patcher.model.diffusion_model.requires_grad_(True)
        # Some blocks write over what autograd has saved.
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            loss = fixed_losses(comfy, patcher, family)().mean()
            loss.backward()
        return loss.detach(), {f"diffusion_model.{name}": p.grad for name, p in network.named_parameters()}


def fixed_losses(comfy, patcher, family, batch=BATCH):
    """A function that computes the loss of each sample of one batch, always with the same noise; its levels are
    spread evenly over the model's schedule."""
    pairs = comfy.pack_module("nodes.host.training.pairing").Pairs(family.latents(batch), family.captions(batch))
    samples = comfy.pack_module("nodes.host.training.dataset").prepare_samples(patcher, pairs, seed=0)
    denoiser = comfy.pack_module("nodes.host.training.denoiser").Denoiser(patcher)
    levels = [int((number + 0.5) / batch * len(denoiser.sigmas)) for number in range(batch)]
    noises = family.latents(batch, seed=3)
    return lambda: denoiser.losses(samples, [denoiser.sigmas[level].clone() for level in levels], noises)


def state_of_parts(model):
    """Class and own attributes of every module: a swapped class or a forward of its own shows."""
    return [(part, type(part), set(part.__dict__)) for part in model.model.modules()]


def train_on_fixed_batch(comfy, model, family, steps, rate):
    """(loss of a network that returns zero, losses of the steps and after them)"""
    isolation = comfy.pack_module("nodes.host.training.isolation")
    training_module = comfy.pack_module("sara_core.training.loop")
    with torch.inference_mode(False), torch.enable_grad():
        with isolation.training_model(model, {"density": DENSITY}, (BATCH, *family.latent)) as training:
            losses = fixed_losses(comfy, training.patcher, family)
            with pytest.MonkeyPatch.context() as patch, torch.no_grad():
                network = training.patcher.model.diffusion_model
                patch.setattr(network, "forward", lambda x, *args, **options: torch.zeros_like(x))
                zero = losses().mean().item()
            run = training_module.Training(
                training.store, torch.optim.Adam([training.store.values], rate), lambda: losses().mean(),
                training_module.TrainingSettings(steps),
            )  # fmt: skip
            run.run()
            return zero, [*run.losses, losses().mean().item()]


def test_the_host_recognises_it(comfy, family, model):
    assert comfy.pack_module("nodes.host.family").model_family(model) == family.name
    assert model.model.model_type.name == PREDICTIONS[family.name]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_gradients_equal_dense_masked_ones(comfy, family, model, dense, untouched, depth):
    expected_loss, gradients = dense
    isolation = comfy.pack_module("nodes.host.training.isolation")
    with torch.inference_mode(False), torch.enable_grad():
        options = {"gradient_checkpointing": depth > 0, "checkpoint_depth": max(depth, 1)}
        with isolation.training_model(model, {"density": DENSITY}, (BATCH, *family.latent), **options) as training:
            losses = fixed_losses(comfy, training.patcher, family)
            loss = losses().mean()
            # Not its bits: weights that require a gradient, as those that it is compared with, take other kernels.
            torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
            loss.backward()
            losses().mean().backward()  # without checkpointing the blocks know by now whether they need it
            assert training.store.support.nnz == training.selection.count
            for segment in training.store.support:
                expected = 2 * gradients[segment.name].flatten()[segment.flat()]
                difference = training.store.values.grad[segment.span] - expected
                assert difference.norm() <= 1e-5 * expected.norm(), segment.name


def test_overfits_one_batch(comfy, family, model, untouched):
    zero, losses = train_on_fixed_batch(comfy, model, family, STEPS[family.name], LEARNING_RATES[family.name])
    assert losses[0] > zero
    assert losses[-1] < losses[0] / 2
    assert losses[-1] < zero  # it has learnt more than to be silent


def train_save_and_load(comfy, family, model):
    """(weights before, trained weights as training ended with them, all weights with the saved delta loaded)"""
    store_module = comfy.pack_module("sara_core.backward.store")
    ended_with, restore = {}, store_module.Store.restore

    def keep_then_restore(self):
        for segment, holder in zip(self.support, self.holders):
            ended_with[segment.name] = holder.weight.detach().clone()
        restore(self)

    base, parts = loaded_weights(model), state_of_parts(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module.Store, "restore", keep_then_restore)
        delta, loss = comfy.execute(
            "SaRATrain", model=model, latents=[{"samples": latent} for latent in family.latents(3)],
            positive=[[caption] for caption in family.captions(3)], steps=3, batch_size=2, density=100 * DENSITY,
            learning_rate=LEARNING_RATES[family.name],
        ).outputs  # fmt: skip
    assert len(set(loss["loss"])) == 3
    assert state_of_parts(model) == parts
    file = comfy.execute("SaRASave", delta=delta, filename_prefix=f"sara/{family.name}").ui["text"][0]
    loaded, *_ = comfy.execute("SaRALoader", model=model, sara_name=file.split("/")[-1], strength=1.0).outputs
    with torch.inference_mode():
        with_delta = loaded_weights(loaded)
        assert_same_bits(loaded_weights(model), base)
    return base, ended_with, with_delta


def test_what_was_trained_comes_back_bit_for_bit(comfy, family, model):
    base, ended_with, with_delta = train_save_and_load(comfy, family, model)
    assert_same_bits(with_delta, {**base, **ended_with})
    assert len(ended_with) > 20
    assert not any(torch.equal(weight, base[name]) for name, weight in ended_with.items())


def test_half_precision(comfy):
    """Weights in bf16 get rounded sums; what is learnt, and comes back, are those."""
    family = FAMILIES["Flux"]
    with torch.inference_mode():
        model = family.model(dtype=torch.bfloat16)
    base, ended_with, with_delta = train_save_and_load(comfy, family, model)
    assert {weight.dtype for weight in ended_with.values()} == {torch.bfloat16}
    assert_same_bits(with_delta, {**base, **ended_with})
    zero, losses = train_on_fixed_batch(comfy, model, family, STEPS["Flux"], LEARNING_RATES["Flux"])
    assert zero < losses[0] > 2 * losses[-1]
    with torch.inference_mode():
        assert_same_bits(loaded_weights(model), base)


def test_captions_of_different_lengths_train_together(comfy):
    """As the T5 encoders of Flux and SD3 give them."""
    family = FAMILIES["SD3"]
    with torch.inference_mode():
        model = family.model()
    captions = family.captions(2)
    captions[1][0] = captions[1][0].repeat(1, 2, 1)
    _, loss = comfy.execute(
        "SaRATrain", model=model, latents=[{"samples": latent} for latent in family.latents(2)],
        positive=[[caption] for caption in captions], steps=2, batch_size=2, learning_rate=1e-3,
    ).outputs  # fmt: skip
    assert len(loss["loss"]) == 2


def test_wan_has_no_temporal_layers(comfy):
    """Its self-attention looks at all frames at once, so there is nothing that is about time only."""
    family = FAMILIES["Wan 2.1"]
    with torch.inference_mode():
        model = family.model()
    inputs = {
        "model": model, "latents": [{"samples": family.latents(1)[0]}], "positive": [family.captions(1)], "steps": 1,
        "density": 5.0, "learning_rate": 1e-3,
    }  # fmt: skip
    with pytest.raises(Exception, match="temporal layers only.*fits nothing.*self_attn"):
        comfy.execute("SaRATrain", **inputs, layers="temporal layers only")
    delta, _ = comfy.execute("SaRATrain", **inputs, include="self_attn").outputs
    assert delta.entries and all(".self_attn." in name for name in delta.entries)
