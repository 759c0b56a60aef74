"""What nodes have put between the layers of a MODEL: the gradients are those of the model with it."""

import pytest
import torch

from tests.support.toy_models import SD15_LAYOUT
from tests.support.unrecognised_models import make_model

BATCH, LATENT = 2, (4, 16, 16)
# Two levels, since FreeU acts on the lower one's channels, and a transformer in the middle, where guidance looks.
LAYOUT = {
    **SD15_LAYOUT, "model_channels": 64, "channel_mult": [1, 2], "num_res_blocks": [1, 1], "transformer_depth": [1, 0],
    "transformer_depth_output": [1, 0, 0, 0], "transformer_depth_middle": 1,
}  # fmt: skip
NODES = {
    "writes over hidden states": lambda comfy, model: comfy.execute("FreeU_V2", model=model).outputs[0],
    "replaces the attention of one block": lambda comfy, model: comfy.execute(
        "SelfAttentionGuidance", model=model, scale=0.5, blur_sigma=2.0
    ).outputs[0],
    "changes what one block attends to": lambda comfy, model: with_scaled_middle(model),
}


def with_scaled_middle(model):
    def patch(n, context, value, extra_options):
        return n, context * (2.0 if extra_options["block"][0] == "middle" else 1.0), value

    changed = model.clone()
    changed.set_model_attn2_patch(patch)
    return changed


@pytest.fixture(scope="module", params=list(NODES))
def model(comfy, request):
    with torch.inference_mode():
        return NODES[request.param](comfy, make_model("SD15", LAYOUT))


def fixed_losses(comfy, patcher):
    generator = torch.Generator().manual_seed(1)
    latents = [torch.randn(1, *LATENT, generator=generator) for _ in range(BATCH)]
    captions = [[torch.randn(1, 77, 768, generator=generator), {}] for _ in range(BATCH)]
    pairs = comfy.pack_module("nodes.host.training.pairing").Pairs(latents, captions)
    samples = comfy.pack_module("nodes.host.training.dataset").prepare_samples(patcher, pairs, seed=0)
    denoiser = comfy.pack_module("nodes.host.training.denoiser").Denoiser(patcher)
    noises = [torch.randn(1, *LATENT, generator=generator) for _ in range(BATCH)]
    return lambda: denoiser.losses(samples, [denoiser.sigmas[level].clone() for level in (300, 700)], noises)


@pytest.fixture(scope="module")
def dense(comfy, model):
    """Weight key → gradient by plain autograd, which keeps a copy of whatever is written over."""
    with torch.inference_mode(False), torch.enable_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.pack_module("nodes.host.training.denoiser"), "differentiable", lambda options: options)
        own = make_model("SD15", LAYOUT)
        own.model.diffusion_model.requires_grad_(True)
        own.model_options = model.model_options
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            fixed_losses(comfy, own)().mean().backward()
        named = own.model.diffusion_model.named_parameters()
        return {f"diffusion_model.{name}": parameter.grad for name, parameter in named}


@pytest.mark.parametrize("checkpointing", [True, False])
def test_gradients_equal_dense_masked_ones(comfy, model, dense, checkpointing):
    isolation = comfy.pack_module("nodes.host.training.isolation")
    options = {"gradient_checkpointing": checkpointing}
    with torch.inference_mode(False), torch.enable_grad():
        with isolation.training_model(model, {"density": 0.05}, (BATCH, *LATENT), **options) as training:
            losses = fixed_losses(comfy, training.patcher)
            for _ in range(2):
                losses().mean().backward()
            assert not training.store.unreached()
            for segment in training.store.support:
                expected = 2 * dense[segment.name].flatten()[segment.flat()]
                difference = training.store.values.grad[segment.span] - expected
                assert difference.norm() <= 1e-5 * expected.norm(), segment.name


def test_one_that_writes_over_its_own_results_is_refused_by_name(comfy):
    """Nothing tells how they were before."""

    def patch(h, skip, transformer_options):
        inner = h.sigmoid()
        result = inner.square()
        inner.zero_()
        return result, skip

    with torch.inference_mode():
        model = make_model("SD15", LAYOUT)
    model.set_model_output_block_patch(patch)
    with pytest.raises(Exception, match="writes over what it has computed.*connect the MODEL from before that node"):
        comfy.execute(
            "SaRATrain", model=model, latents=[{"samples": torch.randn(1, *LATENT)}],
            positive=[[[torch.randn(1, 77, 768), {}]]], steps=1, density=5.0, learning_rate=1e-3,
        )  # fmt: skip
