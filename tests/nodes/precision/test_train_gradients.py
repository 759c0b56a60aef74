"""What training on quantised weights computes equals dense training of the fp32 model that they are dequantised to."""

import contextlib

import pytest
import torch

from tests.nodes.precision.test_apply import applied
from tests.support import quantised_models
from tests.support.quantised_effects import delta_of, dense as dense_change
from tests.support.quantised_models import LAYOUTS
from tests.support.toy_models import unload
from tests.support.toy_training import denoising_loss

# Convolutions come in plain float8 only.
CASES = [("Z-Image", kind) for kind in quantised_models.KINDS] + [("SD1.5", "fp8 e4m3"), ("SD1.5", "GGUF Q4_0")]
PREFIX = "diffusion_model."
BATCH = 1
EVERYTHING = ("fp8 e4m3", "fp8 e5m2")  # in these, biases and norms too


def host_loss(comfy, model, family):
    """The node's own loss over a random image, with fixed draws."""
    pairs = comfy.pack_module("nodes.host.training.pairing").Pairs(family.latents(BATCH), family.captions(BATCH))
    samples = comfy.pack_module("nodes.host.training.dataset").prepare_samples(model, pairs, seed=0)
    return denoising_loss(comfy, model, samples, BATCH)()


def dense_model(kind, family, delta=None, strength=1.0):
    """The fp32 MODEL that files of this kind are dequantised to, with a delta added to its weights."""
    import comfy.sd

    with quantised_models.recognised(family), torch.inference_mode(False):
        weights = quantised_models.references(kind, family)
        for name, entry in delta.entries.items() if delta else ():
            weights[name.removeprefix(PREFIX)] += strength * dense_change(entry)
        return comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": torch.float32})


@contextlib.contextmanager
def trained(comfy, model, family, **options):
    isolation = comfy.pack_module("nodes.host.training.isolation")
    shape = (BATCH, *LAYOUTS[family].latent)
    with isolation.training_model(model, {"density": 0.02}, shape, **options) as training:
        yield training


@contextlib.contextmanager
def differentiable_kernels(comfy):
    put_back = comfy.pack_module("nodes.host.training.kernels").use_differentiable_kernels()
    yield
    put_back()


def dense_loss_and_gradients(comfy, dense, layout):
    """Of a MODEL with fp32 weights, by autograd alone: the loss, and each weight with its gradient."""
    dense.model.diffusion_model.requires_grad_(True)
    with differentiable_kernels(comfy):
        loss = host_loss(comfy, dense, layout)
        loss.backward()
    return loss, {PREFIX + name: weight for name, weight in dense.model.diffusion_model.named_parameters()}


def assert_gradients_are(training, weights):
    for segment in training.store.support:
        expected = weights[segment.name].grad.flatten()[segment.flat()]
        found = training.store.values.grad[segment.span]
        assert (found - expected).norm() <= 1e-5 * expected.norm(), segment.name


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_gradients_equal_dense_ones(comfy, tmp_path, family, kind):
    layout = LAYOUTS[family]
    with torch.inference_mode():
        model = quantised_models.model(kind, family, tmp_path)
    with torch.inference_mode(False), torch.enable_grad():
        wanted, weights = dense_loss_and_gradients(comfy, dense_model(kind, family), layout)
        with trained(comfy, model, family) as training:
            is_added = [base is None for base in training.store.base]
            assert any(is_added) == (kind != "bf16") and all(is_added) >= (kind in EVERYTHING)
            loss = host_loss(comfy, training.patcher, layout)
            assert torch.allclose(loss, wanted, rtol=1e-5)
            loss.backward()
            assert_gradients_are(training, weights)
            for number, segment in enumerate(training.store.support):
                values = weights[segment.name].detach().flatten()[segment.flat()]
                assert (training.store.base_values(number) - values).norm() <= 1e-5 * values.norm(), segment.name
    unload()


@pytest.mark.parametrize("kind", ["int8", "int8 convrot", "convrot w4a4", "fp8 scaled"])
def test_gradients_count_a_delta_that_the_model_already_carries(comfy, tmp_path, kind):
    """Blocks are computed again in the backward, after the model's own call, around which changes stand beside layers
    that the host multiplies with in their quantised form."""
    family, strength = "Z-Image", 3.0
    layout, delta = LAYOUTS[family], delta_of(comfy.pack_module("sara_core.delta"), family)
    with torch.inference_mode():
        model = quantised_models.model(kind, family, tmp_path)
        carrying = applied(comfy, model, delta, strength)
    with torch.inference_mode(False), torch.enable_grad():
        dense = dense_model(kind, family, delta, strength)
        wanted, weights = dense_loss_and_gradients(comfy, dense, layout)
        with trained(comfy, carrying, family) as training:
            loss = host_loss(comfy, training.patcher, layout)
            assert torch.allclose(loss, wanted, rtol=1e-5)
            loss.backward()
            assert_gradients_are(training, weights)
    unload()
