#!/bin/sh
# diffusers 0.42.1, peft 0.21.2: a DoRA at weight 0 does not give the base model.
#
# Expected: set_adapters("it", 0.0) is the model without the adapter, and .5 lies half way, as for LoRA.
# Instead: the weight scales the low-rank part only. The trained magnitudes replace the norms of the base's rows at any
# weight, 0 included: of a DoRA whose training moved magnitudes by a few per cent, a good part stays at 0. Only
# disable_lora() takes it away. ComfyUI and others go from the base to the DoRA in a straight line.
# Why it matters: comparisons "with and without" by weight 0, strength sweeps (XY plots) and adapters faded out over the
# steps are all measured from another model than the base; nothing says so.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0
"$dir/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

INPUTS = (torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1)), 5, torch.ones(4, 3, 16))


def trained(use_dora):
    """A tiny U-Net with an adapter that learnt for 30 steps to give less, and what it gave before."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32,), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4,
        norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    ).requires_grad_(False)
    with torch.no_grad():
        base = unet(*INPUTS).sample
    unet.add_adapter(LoraConfig(r=4, use_dora=use_dora, target_modules=["to_v", "to_out.0"]), "it")
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(30):
        unet(*INPUTS).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return unet, base


def change_left(use_dora):
    """Of the change that the adapter makes at weight 1: what is left at weight 0, and with adapters disabled."""
    unet, base = trained(use_dora)
    unet.requires_grad_(False)
    full = (unet(*INPUTS).sample - base).norm()
    unet.set_adapters("it", 0.0)
    at_zero = (unet(*INPUTS).sample - base).norm()
    unet.disable_lora()
    disabled = (unet(*INPUTS).sample - base).norm()
    return (at_zero / full).item(), (disabled / full).item()


print(f"torch {version('torch')}, diffusers {version('diffusers')}, peft {version('peft')}: share of the change left")
lora, dora = change_left(use_dora=False), change_left(use_dora=True)
for name, (at_zero, disabled) in (("LoRA", lora), ("DoRA", dora)):
    print(f"{name}: at weight 0 {at_zero:.3f}, disabled {disabled:.3f}")
as_stated = max(*lora, dora[1]) < 1e-4 and dora[0] > 0.05
sys.exit(0 if as_stated else "This is no longer so.")
END
