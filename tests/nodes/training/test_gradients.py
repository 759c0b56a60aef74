"""Gradients through the real host equal dense gradients masked to the support, for both ways of reaching a weight."""

import pytest
import torch

from tests.support import toy_models
from tests.support.toy_training import denoising_loss

BATCH = 2


def host_loss(comfy, model):
    """The node's own loss over two random images, with fixed draws; to be called outside inference mode."""
    generator = torch.Generator().manual_seed(3)
    latents = [torch.randn(1, 4, 8, 8, generator=generator) for _ in range(BATCH)]
    captions = [[torch.randn(1, 77, 768, generator=generator), {}] for _ in range(BATCH)]
    pairs = comfy.pack_module("nodes.host.training.pairing").Pairs(latents, captions)
    samples = comfy.pack_module("nodes.host.training.dataset").prepare_samples(model, pairs, seed=0)
    return denoising_loss(comfy, model, samples, BATCH)()


@pytest.fixture(scope="module")
def dense(comfy):
    """Weight key → gradient by plain autograd through ComfyUI's own layers, with fp32 weights."""
    with torch.inference_mode(False), torch.enable_grad():
        model = toy_models.sd15_model()
        model.model.diffusion_model.requires_grad_(True)
        host_loss(comfy, model).backward()
        return {f"diffusion_model.{n}": p.grad for n, p in model.model.diffusion_model.named_parameters()}


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("route", ["dense", "csr"])
@pytest.mark.parametrize("in_place", [True, False])
def test_gradients_equal_dense_ones(comfy, dense, monkeypatch, in_place, route, depth):
    isolation = comfy.pack_module("nodes.host.training.isolation")
    if not in_place:
        monkeypatch.setattr(isolation, "can_be_written", lambda layer, device: False)
    with torch.inference_mode():
        model = toy_models.sd15_model()
    with torch.inference_mode(False), torch.enable_grad():
        rule, shape = {"density": 0.02}, (BATCH, 4, 8, 8)
        options = {"gradient_checkpointing": depth > 0, "checkpoint_depth": max(depth, 1), "route": route}
        with isolation.training_model(model, rule, shape, **options) as training:
            assert {base is not None for base in training.store.base} == {in_place}
            loss = host_loss(comfy, training.patcher)
            loss.backward()
            gradient = training.store.values.grad
            for segment in training.store.support:
                expected = dense[segment.name].flatten()[segment.flat()]
                difference = (gradient[segment.span] - expected).norm()
                assert difference <= 1e-5 * expected.norm(), segment.name


@pytest.mark.bits
def test_attached_layers_compute_the_same_bits_as_the_host(comfy):
    with torch.inference_mode():
        model = toy_models.sd15_model()
    isolation = comfy.pack_module("nodes.host.training.isolation")
    with torch.inference_mode(False), torch.no_grad():
        plain = host_loss(comfy, model)
        with isolation.training_model(model, {"density": 0.02}, (BATCH, 4, 8, 8)) as training:
            assert torch.equal(host_loss(comfy, training.patcher), plain)
