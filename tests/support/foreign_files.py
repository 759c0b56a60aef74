"""What the tests of conversion share: small models made by diffusers, and what they are as ComfyUI's weights."""

import diffusers
import torch
from safetensors.torch import save_file

from sara_core.models.base import opened_base


def small_unet(seed: int = 0, **changes) -> diffusers.UNet2DConditionModel:
    """A UNet in the layout of SD 1.5 with all its kinds of blocks, at most 64 wide, with weights like a trained one."""
    torch.manual_seed(seed)
    config = {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 48,
        "attention_head_dim": 8,
        "sample_size": 8,
        **changes,
    }
    return diffusers.UNet2DConditionModel(**config)


def small_sd3(seed: int = 0) -> diffusers.SD3Transformer2DModel:
    """SD3 with fused query, key and value in ComfyUI, and a last block that modulates the text by two vectors only."""
    torch.manual_seed(seed)
    return diffusers.SD3Transformer2DModel(
        num_layers=2, num_attention_heads=2, attention_head_dim=64, joint_attention_dim=32, caption_projection_dim=128,
        pooled_projection_dim=16, pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip


def small_flux(seed: int = 0) -> diffusers.FluxTransformer2DModel:
    """Flux, in whose blocks and at whose end there is a layer called proj_out."""
    torch.manual_seed(seed)
    return diffusers.FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=64, joint_attention_dim=32,
        pooled_projection_dim=16, axes_dims_rope=(16, 24, 24), guidance_embeds=True,
    )  # fmt: skip


def pipeline_folder(folder, model, **options):
    """The diffusion model as diffusers saves it, where a pipeline's folder has it."""
    place = "unet" if isinstance(model, diffusers.UNet2DConditionModel) else "transformer"
    model.save_pretrained(folder / place, **options)
    return folder


def weights_of(folder) -> dict[str, torch.Tensor]:
    """All weights of a model in any form, by ComfyUI's names."""
    with opened_base(folder) as base:
        return {name: tensor.clone() for name, tensor in base.weights().items()}


def checkpoint_file(path, weights, dtype=torch.float32):
    """A single-file checkpoint of these weights (by ComfyUI's names), with something of a VAE in it."""
    tensors = {f"model.{name}": tensor.to(dtype).contiguous() for name, tensor in weights.items()}
    save_file({**tensors, "first_stage_model.x.weight": torch.zeros(2, 2)}, path)
    return path


def assert_equal_weights(first, second):
    """Bit for bit."""
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different
