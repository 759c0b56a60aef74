"""Models of real shapes with random weights, as diffusers builds them, and inputs for a training step of each."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

# Normal weights of this width have the densities that the SaRA paper reports for SD1.5: 0.58 % below 2e-4, 5.8 % below
# 2e-3. Every Linear and convolution but the last follows a norm, so that activations stay in range.
STANDARD_DEVIATION = 0.0275
SEED = 0
SD_TOKENS, FLUX_TOKENS = 77, 512

SD15 = {"sample_size": 64, "cross_attention_dim": 768}
# The shallow half of its layers, where most tokens are, in a tenth of its memory.
SD15_PART = {
    **SD15,
    "block_out_channels": (320, 640),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SMALL = {
    "sample_size": 32,
    "block_out_channels": (64, 128),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 768,
}


@dataclass(frozen=True)
class Shape:
    """build: a module, on torch's default device; inputs: (latent size, batch) → what the module is called with"""

    build: Callable[[], torch.nn.Module]
    inputs: Callable[[int, int], dict]


def _unet(config: dict) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**config)


def _unet_inputs(config: dict, size: int, batch: int) -> dict:
    inputs = {
        "sample": torch.randn(batch, 4, size, size),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": torch.randn(batch, SD_TOKENS, config["cross_attention_dim"]),
    }
    if "addition_embed_type" in config:
        sizes = [8.0 * size, 8.0 * size, 0.0, 0.0, 8.0 * size, 8.0 * size]
        pooled = config["projection_class_embeddings_input_dim"] - len(sizes) * config["addition_time_embed_dim"]
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, pooled), "time_ids": torch.tensor([sizes] * batch),
        }  # fmt: skip
    return inputs


def _flux_pair(**smaller) -> torch.nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True, **smaller)


def _flux_inputs(size: int, batch: int) -> dict:
    side = size // 2  # patches of 2×2 latents
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return {
        "hidden_states": torch.randn(batch, side * side, 64),
        "encoder_hidden_states": torch.randn(batch, FLUX_TOKENS, 4096),
        "pooled_projections": torch.randn(batch, 768),
        "timestep": torch.full((batch,), 0.5),
        "img_ids": torch.stack([torch.zeros(side * side), rows.flatten(), columns.flatten()], dim=-1).float(),
        "txt_ids": torch.zeros(FLUX_TOKENS, 3),
        "guidance": torch.full((batch,), 3.5),
    }


def _unet_shape(config: dict) -> Shape:
    return Shape(functools.partial(_unet, config), functools.partial(_unet_inputs, config))


SHAPES = {
    "sd15": _unet_shape(SD15),
    "sd15-part": _unet_shape(SD15_PART),
    "sdxl": _unet_shape(SDXL),
    "flux-pair": Shape(_flux_pair, _flux_inputs),
    "small": _unet_shape(SMALL),
    "flux-small": Shape(functools.partial(_flux_pair, num_attention_heads=2), _flux_inputs),
}


def random_model(name: str, dtype: torch.dtype, device: str) -> torch.nn.Module:
    """`SHAPES[name]` with random weights."""
    return randomised(SHAPES[name].build, dtype, device)


def randomised(build: Callable[[], torch.nn.Module], dtype: torch.dtype, device: str) -> torch.nn.Module:
    """What `build` makes, with weights drawn in the dtype and place they stay in: nothing of its size exists twice."""
    with torch.device("meta"):
        model = build()
    model = model.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(SEED)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, STANDARD_DEVIATION, generator=generator)
            else:  # norms: the identity; biases: none
                parameter.fill_(float(parameter_name.endswith("weight")))
    return model.requires_grad_(False)


def random_inputs(name: str, size: int, batch: int, dtype: torch.dtype, device: str) -> dict:
    """Inputs of `SHAPES[name]` for latents of size × size, in the model's dtype."""
    torch.manual_seed(SEED)

    def moved(value):
        if isinstance(value, dict):
            return {name: moved(part) for name, part in value.items()}
        return value.to(device, dtype)

    return moved(SHAPES[name].inputs(size, batch))
