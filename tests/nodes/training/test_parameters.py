"""Biases, norms and a module's own parameters in the real host: gradients, ways of loading, and no trace on the MODEL;
and weights chosen by the gradient of the host's loss."""

import pytest
import torch

from tests.nodes.training.test_gradients import BATCH
from tests.nodes.training.test_gradients import host_loss as toy_loss
from tests.nodes.training.test_isolation import assert_deltas_agree, load_in_low_vram, train
from tests.support import toy_models
from tests.support.family_models import FAMILIES
from tests.support.toy_training import denoising_loss

EVERYTHING = "all layers, biases and norms"
SHAPE = (BATCH, 4, 8, 8)


def family_loss(comfy, model, family):
    """The node's own loss over two random samples of a family, with fixed draws."""
    pairs = comfy.pack_module("nodes.host.training.pairing").Pairs(family.latents(BATCH), family.captions(BATCH))
    samples = comfy.pack_module("nodes.host.training.dataset").prepare_samples(model, pairs, seed=0)
    return denoising_loss(comfy, model, samples, BATCH)()


def dense_gradients(model, loss):
    """Weight key → gradient by plain autograd through ComfyUI's own layers, with kernels that have a backward."""
    import comfy.model_management

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.model_management, "in_training", True, raising=False)
        return _dense_gradients(model, loss)


def _dense_gradients(model, loss):
    network = model.model.diffusion_model.requires_grad_(True)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():  # some blocks write over what autograd has saved
        loss(model).backward()
    return {f"diffusion_model.{name}": parameter.grad for name, parameter in network.named_parameters()}


def assert_gradients_agree(store, dense):
    gradient = store.values.grad
    for segment in store.support:
        expected = dense[segment.name].flatten()[segment.flat()]
        difference = (gradient[segment.span] - expected).norm()
        assert difference <= 1e-5 * expected.norm(), segment.name


@pytest.fixture(scope="module")
def dense(comfy):
    with torch.inference_mode(False), torch.enable_grad():
        return dense_gradients(toy_models.sd15_model(), lambda model: toy_loss(comfy, model))


@pytest.fixture
def sd15(comfy):
    with torch.inference_mode():
        return toy_models.sd15_model()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("way", ["in place", "after a copy", "low VRAM"])
def test_gradients_of_biases_and_norms_equal_dense_ones(comfy, dense, sd15, monkeypatch, way, checkpointing):
    isolation = comfy.pack_module("nodes.host.training.isolation")
    if way == "after a copy":
        monkeypatch.setattr(isolation, "can_be_written", lambda layer, device: False)
    elif way == "low VRAM":
        load_in_low_vram(monkeypatch)
    with torch.inference_mode(False), torch.enable_grad():
        options = {"include": "bias, norm", "gradient_checkpointing": checkpointing}
        with isolation.training_model(sd15, {"density": 0.9}, SHAPE, **options) as training:
            toy_loss(comfy, training.patcher).backward()
            assert_gradients_agree(training.store, dense)
            trained = {segment.name for segment in training.store.support}
    others = {key for key, gradient in dense.items() if gradient.dim() == 1}
    assert {key for key in others if key.endswith("bias")} <= trained <= others
    assert "diffusion_model.input_blocks.1.0.in_layers.0.weight" in trained  # a GroupNorm


@pytest.mark.parametrize("name", ["Wan 2.1", "Flux", "SD3"])
def test_gradients_in_families_with_norms_and_parameters_of_their_own(comfy, name):
    family = FAMILIES[name]
    isolation = comfy.pack_module("nodes.host.training.isolation")
    with torch.inference_mode():
        model = family.model()
    with torch.inference_mode(False), torch.enable_grad():
        dense = dense_gradients(family.model(), lambda other: family_loss(comfy, other, family))
        with isolation.training_model(
            model, {"density": 0.2, "per_layer": True}, (BATCH, *family.latent), preset=EVERYTHING
        ) as training:
            family_loss(comfy, training.patcher, family).backward()
            reached = [s for s, done in zip(training.store.support, training.store.reached) if done]
            assert_gradients_agree(training.store, dense)
    unused = {key for key, gradient in dense.items() if gradient is None}
    assert {segment.name for segment in reached} == dense.keys() - unused
    if name == "Wan 2.1":
        assert {"diffusion_model.blocks.0.modulation", "diffusion_model.head.modulation"} <= dense.keys() - unused


def test_what_training_ended_with_is_what_applying_gives(comfy, model, monkeypatch):
    store_module = comfy.pack_module("sara_core.backward.store")
    ended_with = {}
    restore = store_module.Store.restore

    def keep_then_restore(self):
        for number, (segment, holder) in enumerate(zip(self.support, self.holders)):
            weight = holder.weight.detach().clone()
            if self.base[number] is None:
                position, values = self.whole(number)
                weight.view(-1)[position] += values
            ended_with[segment.name] = weight
        restore(self)

    monkeypatch.setattr(store_module.Store, "restore", keep_then_restore)
    settings = {"density": 50.0, "include": "*, bias, norm", "steps": 2, "learning_rate": 1e-3, "batch_size": 2}
    delta = train(comfy, model, **settings)
    base = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    assert any(name.endswith("to_out.0.bias") for name in delta.entries)
    assert "diffusion_model.input_blocks.1.1.norm.bias" in delta.entries
    patched = comfy.execute("SaRAApply", model=model, delta=delta, strength=1.0).outputs[0]
    with torch.inference_mode():
        now = toy_models.loaded_weights(patched)
        after = toy_models.loaded_weights(model)
    assert ended_with.keys() == delta.entries.keys()
    for name, weight in ended_with.items():
        assert torch.equal(now[name], weight), name
        assert not torch.equal(weight, base[name]), name
    assert all(torch.equal(after[name], weight) for name, weight in base.items())


def test_low_vram_trains_the_same(comfy, sd15, monkeypatch):
    fully_loaded = train(comfy, sd15, include="bias, norm", density=60.0)
    load_in_low_vram(monkeypatch)
    assert_deltas_agree(fully_loaded, train(comfy, sd15, include="bias, norm", density=60.0))


def test_what_is_left_out_is_counted(comfy, sd15):
    isolation = comfy.pack_module("nodes.host.training.isolation")
    shapes = {name: tensor.shape for name, tensor in sd15.model.diffusion_model.state_dict().items()}
    others = sum(shape.numel() for shape in shapes.values() if len(shape) == 1)
    with torch.inference_mode(False), torch.enable_grad():
        with isolation.training_model(sd15, {"density": 0.1}, SHAPE) as training:
            assert set(training.left_out) == {"biases", "norms"} and sum(training.left_out.values()) == others
        with isolation.training_model(sd15, {"density": 0.1}, SHAPE, preset=EVERYTHING) as training:
            assert training.left_out == {}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_weights_are_chosen_by_the_gradient_of_the_hosts_loss(comfy, dense, model, untouched, checkpointing):
    isolation = comfy.pack_module("nodes.host.training.isolation")
    losses = []

    def scoring_loss(patcher, encoders):
        def loss():
            losses.append(toy_loss(comfy, patcher))
            return losses[-1]

        return loss

    rule = {"rule": "gradient", "density": 0.001}
    with torch.inference_mode(False), torch.enable_grad():
        with isolation.training_model(
            model, rule, SHAPE, gradient_checkpointing=checkpointing, scoring_loss=scoring_loss
        ) as training:
            selection, support = training.selection, training.store.support
    assert len(losses) == 3 and selection.rule == rule and selection.theta is None
    weights = model.model.state_dict()
    scores = {key: (weights[key] * gradient).abs() for key, gradient in dense.items() if gradient.dim() > 1}
    lowest = float(torch.cat([score.flatten() for score in scores.values()]).topk(selection.count).values[-1])
    chosen = {segment.name: segment.flat() for segment in support}
    for key, score in scores.items():
        position = chosen.get(key, torch.empty(0, dtype=torch.int64))
        assert torch.isin((score.flatten() > 1.001 * lowest).nonzero().view(-1), position).all(), key
        assert (score.flatten()[position] > 0.999 * lowest).all(), key


def test_a_scoring_loss_that_fails_leaves_the_model_as_it_was(comfy, model, untouched):
    isolation = comfy.pack_module("nodes.host.training.isolation")

    def failing():
        raise KeyboardInterrupt

    with torch.inference_mode(False), torch.enable_grad(), pytest.raises(KeyboardInterrupt):
        with isolation.training_model(
            model, {"rule": "gradient", "density": 0.01}, SHAPE, scoring_loss=lambda patcher, encoders: failing
        ):
            pass
