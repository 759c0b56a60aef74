"""A checkpoint with random weights that a WebUI loads as Stable Diffusion 1.5: a UNet's file, CLIP-L and the VAE.

    python -m benchmarks.webui_.checkpoint UNET_FILE DTYPE FILE
"""

import json
import shutil
import sys
from pathlib import Path

import safetensors.torch
import torch
import yaml

from benchmarks.lib.random_unet import LAYOUTS
from devtools.comfyui.install import prepare

SEED, STANDARD_DEVIATION = 1, 0.02
CLIP = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768, "vocab_size": 49408, "max_position_embeddings": 77,
}  # fmt: skip
VAE = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


def write(unet: Path, dtype: torch.dtype, path: Path) -> None:
    """Needs comfy on the path. unet: a file of weights by the UNet's own names"""
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        text = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in
                CLIPTextModel(CLIPTextConfig(**CLIP)).state_dict().items()}  # fmt: skip
        pictures = AutoencoderKL(ddconfig=VAE, embed_dim=4).state_dict()
    generator = torch.Generator().manual_seed(SEED)
    weights = {f"model.diffusion_model.{name}": weight for name, weight in safetensors.torch.load_file(unet).items()}
    for prefix, shapes in (("cond_stage_model.transformer.", text), ("first_stage_model.", pictures)):
        for name, meta in shapes.items():
            if meta.is_floating_point():
                drawn = torch.randn(meta.shape, generator=generator).mul_(STANDARD_DEVIATION)
                # The host divides by the mean of what the text encoder gives.
                weights[prefix + name] = drawn.add_(1.0) if ".norm" in name or "layer_norm" in name else drawn
    stored = {name: weight.to(dtype) for name, weight in weights.items()}
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    stored["alphas_cumprod"] = (1 - betas).cumprod(0).float()
    safetensors.torch.save_file(stored, path)


def write_config(checkout: Path, layout: str, path: Path) -> None:
    """The configuration that AUTOMATIC1111's WebUI reads beside a checkpoint, and a folder with that of its CLIP.

    checkout: the WebUI's, whose own configuration of Stable Diffusion 1.5 is taken; layout: the UNet's, of LAYOUTS
    """
    config = yaml.safe_load(Path(checkout, "configs", "v1-inference.yaml").read_text(encoding="utf-8"))
    parameters, unet = config["model"]["params"], LAYOUTS[layout]
    levels = len(unet["channel_mult"])
    parameters["unet_config"]["params"].update(
        num_res_blocks=unet["num_res_blocks"][0], channel_mult=unet["channel_mult"],
        attention_resolutions=[2**level for level in range(levels) if level == 0 or level < levels - 1],
    )  # fmt: skip
    clip = path.parent / "clip"
    shutil.copytree(prepare().folder / "comfy" / "sd1_tokenizer", clip, dirs_exist_ok=True)
    (clip / "config.json").write_text(json.dumps({"model_type": "clip_text_model", **CLIP}), encoding="utf-8")
    parameters["cond_stage_config"]["params"] = {"version": str(clip)}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")


if __name__ == "__main__":
    unet_file, kind, file = sys.argv[1:]
    sys.path.insert(0, str(prepare().folder))
    from comfy.cli_args import args

    args.cpu = True
    write(Path(unet_file), getattr(torch, kind), Path(file))
