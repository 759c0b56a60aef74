"""A small random model of each family, in the smallest layout the host recognises, with what its text encoder gives."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.support.toy_models import SD15_LAYOUT

SD21_LAYOUT = {
    **SD15_LAYOUT,
    "num_res_blocks": [1] * 6,
    "channel_mult": [1] * 6,
    "transformer_depth": [1, 0, 0, 0, 0, 0],
    # The last output block needs a transformer: the host reads there whether a model predicts v.
    "transformer_depth_output": [1] + [0] * 11,
    "context_dim": 1024,
    "num_heads": -1,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
}
V_PREDICTION_MARK = "output_blocks.11.1.transformer_blocks.0.norm1.bias"

SDXL_LAYOUT = {
    **SD21_LAYOUT,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 1, 1],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0] * 9,
    "transformer_depth_middle": -2,
    "context_dim": 2048,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
SD3_LAYOUT = {
    "in_channels": 16,
    "depth": 2,
    "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
    "num_patches": 64,
    "pos_embed_max_size": 8,
}
FLUX_LAYOUT = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
WAN_LAYOUT = {"model_type": "t2v", "dim": 128, "ffn_dim": 256, "num_heads": 1, "num_layers": 2}


@dataclass(frozen=True)
class Family:
    """make: returns the host's own module; latent: shape of one sample; encode: generator → CONDITIONING entry"""

    name: str
    make: Callable
    latent: tuple[int, ...]
    encode: Callable[[torch.Generator], list]

    def state_dict(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        """Random weights under the names of the family's own files, without a prefix."""
        return {name: weight.to(dtype) for name, weight in random_state_dict(self.make, seed).items()}

    def model(self, seed: int = 0, dtype: torch.dtype = torch.float32):
        """A MODEL (ModelPatcher) made by the host from these weights."""
        import comfy.sd

        return comfy.sd.load_diffusion_model_state_dict(self.state_dict(seed, dtype), model_options={"dtype": dtype})

    def latents(self, count: int, seed: int = 1) -> list[torch.Tensor]:
        """Random latents as a VAE gives them: [1, channels, (frames,) height, width] each."""
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(1, *self.latent, generator=generator) for _ in range(count)]

    def captions(self, count: int, seed: int = 2) -> list[list]:
        """Random captions as the entries of a CONDITIONING: [tensor, options] each."""
        generator = torch.Generator().manual_seed(seed)
        return [self.encode(generator) for _ in range(count)]


def random_state_dict(make: Callable, seed: int = 0) -> dict[str, torch.Tensor]:
    """fp32 weights for the module that `make()` returns, under its own names."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in make().state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    weights = {name: _random(name, shape, generator) for name, shape in shapes.items()}
    if V_PREDICTION_MARK in weights:
        weights[V_PREDICTION_MARK] *= 10
    return weights


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if len(shape) <= 1:  # norms and biases: near the identity, so that activations stay in range
        return float(name.endswith("weight")) + 0.02 * torch.randn(shape, generator=generator)
    if name.endswith(("modulation", "pos_embed")):
        return 0.1 * torch.randn(shape, generator=generator)
    return torch.randn(shape, generator=generator) * math.prod(shape[1:]) ** -0.5


def unet(layout):
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(**layout)


def transformer(kind: type, layout: dict):
    """A transformer of one of the host's classes, with the host's own layers."""
    import comfy.ops

    return kind(**layout, operations=comfy.ops.disable_weight_init)


def _sd3():
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

    return transformer(MMDiT, SD3_LAYOUT)


def _flux():
    from comfy.ldm.flux.model import Flux

    return transformer(Flux, FLUX_LAYOUT)


def _wan():
    from comfy.ldm.wan.model import WanModel

    return transformer(WanModel, WAN_LAYOUT)


def _encoder(tokens, token_width, pooled_width=None, **options):
    """A maker of one caption: that many vectors of that width, and a pooled one where the family has it."""

    def encode(generator):
        caption = torch.randn(1, tokens, token_width, generator=generator)
        if pooled_width is None:
            return [caption, dict(options)]
        return [caption, {"pooled_output": torch.randn(1, pooled_width, generator=generator), **options}]

    return encode


def _umt5(generator):
    """Wan's text encoder fills up to 512 tokens with zeros."""
    tokens = torch.zeros(1, 512, 4096)
    tokens[:, :12] = torch.randn(1, 12, 4096, generator=generator)
    return [tokens, {}]


_SDXL_SIZES = {"width": 1024, "height": 768, "crop_w": 8, "crop_h": 0, "target_width": 1024, "target_height": 768}

FAMILIES = {
    family.name: family
    for family in [
        Family("SD1.5", lambda: unet(SD15_LAYOUT), (4, 8, 8), _encoder(77, 768)),
        Family("SD2.1", lambda: unet(SD21_LAYOUT), (4, 8, 8), _encoder(77, 1024, 1024)),
        Family("SDXL", lambda: unet(SDXL_LAYOUT), (4, 8, 8), _encoder(77, 2048, 1280, **_SDXL_SIZES)),
        Family("SD3", _sd3, (16, 8, 8), _encoder(154, 4096, 2048)),
        Family("Flux", _flux, (16, 8, 8), _encoder(256, 4096, 768, guidance=3.5)),
        Family("Wan 2.1", _wan, (16, 2, 8, 8), _umt5),
    ]
}
