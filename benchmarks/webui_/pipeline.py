"""A folder of diffusers' with random weights that SD.Next loads as Stable Diffusion 1.5: a UNet's file, CLIP-L and a
small VAE; and a file of such a UNet's weights by the names that deltas have.

    python -m benchmarks.webui_.pipeline folder UNET_FILE DTYPE FOLDER
    python -m benchmarks.webui_.pipeline names FILE
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import diffusers
import safetensors.torch
import torch
import transformers

from benchmarks.hosts_.in_diffusers import LAYOUT, PREFIX
from benchmarks.webui_.checkpoint import CLIP, SEED, STANDARD_DEVIATION
from devtools.comfyui.install import prepare
from sara_core.delta.translate import dense_to_comfy, dense_to_diffusers
from sara_core.names.diffusers import diffusers_parts
from sara_core.names.parts import Part

_VAE = {
    "block_out_channels": (32, 32, 64, 64), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 1,
}  # fmt: skip
_SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "skip_prk_steps": True,
}  # fmt: skip


def write(unet: Path, dtype: torch.dtype, folder: Path, tokenizer: Path) -> None:
    """unet: a file of weights by the names that a checkpoint has; tokenizer: CLIP's, a folder"""
    generator, tokens = torch.Generator().manual_seed(SEED), CLIP["max_position_embeddings"]
    pipeline = diffusers.StableDiffusionPipeline(
        vae=_random(diffusers.AutoencoderKL(**_VAE), generator),
        text_encoder=_random(transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP)), generator),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(tokenizer, model_max_length=tokens),
        unet=_unet(unet), scheduler=diffusers.PNDMScheduler(**_SCHEDULER),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.to(dtype).save_pretrained(folder)


def rename(file: Path) -> None:
    """file: weights by diffusers' names behind PREFIX, which are by ComfyUI's then"""
    found = {name.removeprefix(PREFIX): weight for name, weight in safetensors.torch.load(file.read_bytes()).items()}
    weights = {PREFIX + part.name: dense_to_comfy(found[name], part).clone() for name, part in _parts(found).items()}
    safetensors.torch.save_file(weights, file)


def _unet(file: Path) -> diffusers.UNet2DConditionModel:
    stored = safetensors.torch.load_file(file)
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**LAYOUT)
    own = {name: dense_to_diffusers(stored[part.name], part) for name, part in _parts(unet.state_dict()).items()}
    unet.load_state_dict(own, assign=True)
    return unet


def _parts(weights: Mapping[str, torch.Tensor]) -> dict[str, Part]:
    return diffusers_parts({name: tuple(weight.shape) for name, weight in weights.items()}, whole=True)


@torch.no_grad()
def _random(model: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    for name, weight in model.named_parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator).mul_(STANDARD_DEVIATION))
        if "norm" in name:
            weight.add_(1.0)
    return model


if __name__ == "__main__":
    wanted, *arguments = sys.argv[1:]
    if wanted == "names":
        rename(Path(*arguments))
    else:
        unet_file, kind, folder = arguments
        write(Path(unet_file), getattr(torch, kind), Path(folder), prepare().folder / "comfy" / "sd1_tokenizer")
