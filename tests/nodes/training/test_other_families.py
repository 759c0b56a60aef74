"""Families that nobody has prepared anything for are tried, and train as they should where autograd could."""

import pytest
import torch

from tests.support.unrecognised_models import make_model

BATCH = 2
# LTX writes over hidden states in ways that only copies can undo; Qwen-Image has weights without any effect; Cosmos
# Predict2 computes with a kernel that has no gradient.
MODELS = {
    "LTX-Video": (
        "LTXV",
        {"image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 128, "attention_head_dim": 64,
         "num_attention_heads": 2, "caption_channels": 256, "num_layers": 2},
        (128, 2, 4, 4), 256,
    ),
    "Qwen-Image": (
        "QwenImage",
        {"image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "attention_head_dim": 128,
         "num_attention_heads": 1, "joint_attention_dim": 256},
        (16, 1, 8, 8), 256,
    ),
    "Cosmos Predict2": (
        "CosmosT2IPredict2",
        {"image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
         "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 256, "num_blocks": 2,
         "num_heads": 2, "crossattn_emb_channels": 1024, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
         "use_adaln_lora": True, "adaln_lora_dim": 64, "rope_enable_fps_modulation": False},
        (16, 1, 8, 8), 1024,
    ),
}  # fmt: skip


def fixed_loss(comfy, patcher, latent, caption_width):
    generator = torch.Generator().manual_seed(1)
    latents = [torch.randn(1, *latent, generator=generator) for _ in range(BATCH)]
    mask = torch.ones(1, 16, dtype=torch.long)
    captions = [
        [torch.randn(1, 16, caption_width, generator=generator), {"attention_mask": mask}] for _ in range(BATCH)
    ]
    pairs = comfy.pack_module("nodes.host.training.pairing").Pairs(latents, captions)
    samples = comfy.pack_module("nodes.host.training.dataset").prepare_samples(patcher, pairs, seed=0)
    denoiser = comfy.pack_module("nodes.host.training.denoiser").Denoiser(patcher)
    levels = [len(denoiser.sigmas) // 4, len(denoiser.sigmas) * 3 // 4]
    noises = [torch.randn(sample.latent.shape, generator=generator) for sample in samples]
    return lambda: denoiser.losses(samples, [denoiser.sigmas[level].clone() for level in levels], noises).mean()


@pytest.fixture(scope="module", params=list(MODELS))
def case(request):
    return request.param, *MODELS[request.param]


@pytest.fixture(scope="module")
def dense(comfy, case):
    """Weight key → gradient by plain autograd."""
    from comfy import model_management

    _, config_name, layout, latent, width = case
    with torch.inference_mode(False), torch.enable_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_management, "in_training", True)
        undo = comfy.pack_module("nodes.host.training.kernels").use_differentiable_kernels()
        patcher = make_model(config_name, layout)
        network = patcher.model.diffusion_model.requires_grad_(True)
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            fixed_loss(comfy, patcher, latent, width)().backward()
        undo()
        return {f"diffusion_model.{name}": parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("checkpointing", [True, False])
def test_gradients_equal_dense_masked_ones(comfy, case, dense, checkpointing):
    name, config_name, layout, latent, width = case
    isolation = comfy.pack_module("nodes.host.training.isolation")
    unused = comfy.pack_module("nodes.host.training.unused")
    with torch.inference_mode():
        model = make_model(config_name, layout)
    assert comfy.pack_module("nodes.host.family").model_family(model) == name
    with torch.inference_mode(False), torch.enable_grad():
        plain = fixed_loss(comfy, model, latent, width)
        options = {"gradient_checkpointing": checkpointing}
        with torch.no_grad():
            expected_loss = plain()
        with isolation.training_model(model, {"density": 0.05}, (BATCH, *latent), **options) as training:
            loss = fixed_loss(comfy, training.patcher, latent, width)
            for _ in range(2):
                value = loss()
                value.backward()
            assert torch.allclose(value, expected_loss, rtol=1e-5)
            without_effect = {key for key, gradient in dense.items() if gradient is None} & {
                segment.name for segment in training.store.support
            }
            assert set(training.store.unreached()) == without_effect
            assert bool(without_effect) == (name == "Qwen-Image")
            unused.check_used_weights_reached(training.store, lambda: loss)
            for segment in training.store.support:
                if segment.name not in without_effect:
                    expected = 2 * dense[segment.name].flatten()[segment.flat()]
                    difference = training.store.values.grad[segment.span] - expected
                    assert difference.norm() <= 1e-5 * expected.norm(), segment.name


def test_the_hosts_own_kernels_come_back(comfy):
    kitchen = pytest.importorskip("comfy_kitchen")
    config_name, layout, latent, _ = MODELS["Cosmos Predict2"]
    isolation, own = comfy.pack_module("nodes.host.training.isolation"), dict(vars(kitchen))
    with torch.inference_mode(False), pytest.raises(ZeroDivisionError):
        with isolation.training_model(make_model(config_name, layout), {"density": 0.05}, (BATCH, *latent)):
            assert kitchen.rms_rope_split_half is not own["rms_rope_split_half"]
            raise ZeroDivisionError("planted")
    assert vars(kitchen) == own
