"""Families whose networks were written for sampling only: what they keep between forwards, what they run without a
gradient, and what they take of the first sample for all. Each through the real nodes, as a small random model."""

import pytest
import torch

from tests.support.toy_models import assert_same_bits, loaded_weights
from tests.support.unrecognised_models import NETWORKS

BATCH = 2


@pytest.fixture(scope="module", params=list(NETWORKS))
def network(request):
    return NETWORKS[request.param]


@pytest.fixture(scope="module")
def model(comfy, network):
    """Its MODEL after a picture has been made with it, so that it keeps what it keeps."""
    with torch.inference_mode():
        model = network.model()
    sample(comfy, network, model)
    return model


def sample(comfy, network, model, steps=2):
    caption = network.captions(1)
    return comfy.execute(
        "KSampler", model=model, positive=caption, negative=caption, seed=0, steps=steps, cfg=1.0, sampler_name="euler",
        scheduler="normal", latent_image={"samples": torch.zeros(1, *network.latent)},
    ).outputs[0]["samples"]  # fmt: skip


def batch_losses(comfy, patcher, network):
    """A function from positions in one batch to the losses of those samples together."""
    pairs = comfy.pack_module("nodes.host.training.pairing").Pairs(network.latents(BATCH), network.captions(BATCH))
    samples = comfy.pack_module("nodes.host.training.dataset").prepare_samples(patcher, pairs, seed=0)
    denoiser = comfy.pack_module("nodes.host.training.denoiser").Denoiser(patcher)
    levels = [len(denoiser.sigmas) // 4, len(denoiser.sigmas) * 3 // 4]
    noises = network.latents(BATCH, seed=3)
    noises = [noise.view(sample.latent.shape) for noise, sample in zip(noises, samples)]
    return lambda *positions: denoiser.losses(*(
        [values[i] for i in positions]
        for values in (samples, [denoiser.sigmas[level].clone() for level in levels], noises)
    ))  # fmt: skip


@pytest.fixture(scope="module")
def dense(comfy, network):
    """Weight key → gradient by plain autograd, one sample at a time, with nothing kept and nothing left out."""
    from comfy import model_management
    from comfy.ldm.hunyuan3dv2_1.hunyuandit import MoEBlock

    with torch.inference_mode(False), torch.enable_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_management, "in_training", True)
        patch.setattr(MoEBlock, "moe_infer", MoEBlock.moe_infer.__wrapped__)
        patcher = network.model()
        module = patcher.model.diffusion_model.requires_grad_(True)
        losses = batch_losses(comfy, patcher, network)
        for position in range(BATCH):
            with torch.autograd.graph.allow_mutation_on_saved_tensors():
                (losses(position).sum() / BATCH).backward()
        return {f"diffusion_model.{name}": parameter.grad for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("checkpointing", [True, False])
def test_gradients_equal_dense_masked_ones(comfy, network, model, dense, checkpointing):
    isolation = comfy.pack_module("nodes.host.training.isolation")
    unused = comfy.pack_module("nodes.host.training.unused")
    options = {"gradient_checkpointing": checkpointing}
    with torch.inference_mode(False), torch.enable_grad():
        with isolation.training_model(model, {"density": 0.05}, (BATCH, *network.latent), **options) as training:
            losses = batch_losses(comfy, training.patcher, network)
            losses(0, 1).mean().backward()
            torch.cat([losses(0), losses(1)]).mean().backward()
            unused.check_used_weights_reached(training.store, lambda: lambda: losses(0, 1).mean())
            reached = 0
            for segment in training.store.support:
                gradient = dense[segment.name]
                if gradient is not None:
                    expected = 2 * gradient.flatten()[segment.flat()]
                    difference = training.store.values.grad[segment.span] - expected
                    assert difference.norm() <= 1e-5 * expected.norm(), segment.name
                    reached += 1
            assert reached > 10


def test_no_sample_depends_on_the_others(comfy, network, model):
    with torch.inference_mode(False), torch.no_grad():
        losses = batch_losses(comfy, model, network)
        torch.testing.assert_close(losses(0, 1), torch.cat([losses(0), losses(1)]), rtol=1e-5, atol=0)


def test_trains_and_leaves_the_model_as_it_was(comfy, network, model):
    with torch.inference_mode():
        before = loaded_weights(model)
    attributes = plain_attributes(model)
    picture = sample(comfy, network, model)
    delta, loss = comfy.execute(
        "SaRATrain", model=model, latents=[{"samples": latent} for latent in network.latents(2)],
        positive=[[caption] for caption in network.captions(2)], steps=3, batch_size=2, density=5.0, learning_rate=1e-3,
    ).outputs  # fmt: skip
    assert len(set(loss["loss"])) == 3
    assert plain_attributes(model) == attributes
    with torch.inference_mode():
        assert_same_bits(loaded_weights(model), before)
    assert torch.equal(sample(comfy, network, model), picture)
    loaded = comfy.execute("SaRAApply", model=model, delta=delta, strength=1.0).outputs[0]
    with torch.inference_mode():
        with_delta = loaded_weights(loaded)
    changed = {name for name, entry in delta.entries.items() if entry.values.any()}
    assert changed and changed == {name for name, weight in with_delta.items() if not torch.equal(weight, before[name])}


def plain_attributes(model):
    """What the modules hold beside weights, by its identity."""
    return {
        (name, attribute): id(value)
        for name, part in model.model.diffusion_model.named_modules()
        for attribute, value in vars(part).items()
    }
