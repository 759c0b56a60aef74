#!/bin/sh
# diffusers 0.42.1: a new MotionAdapter is not the identity: untrained, it scrambles every frame.
#
# Expected: what is trained beside a frozen model does nothing at first, as a LoRA, a ControlNet, and AnimateDiff's own
# motion module, whose last projections begin at zero (https://arxiv.org/abs/2307.04725).
# Instead: MotionAdapter(), the class that diffusers has for such modules, begins with random last projections too. A
# frame is then as far from the picture model's as another model's; every projection must be set to 0 by hand.
# Why it matters: a motion module that is trained from a new MotionAdapter has first to unlearn that it destroys
# pictures, and a rule that chooses weights by size finds none at 0.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0
"$dir/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import torch
from diffusers import ControlNetModel, MotionAdapter, UNet2DConditionModel, UNetMotionModel

BLOCKS = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 16, "attention_head_dim": 8,
          "cross_attention_dim": 16, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}  # fmt: skip
NOISE, TEXT = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.ones(1, 3, 16)


def with_module(unet, at_zero):
    """The UNet beside a new motion module, whose last projections are set to 0 or left as they are made."""
    adapter = MotionAdapter(
        block_out_channels=(32, 64), motion_num_attention_heads=4, motion_norm_num_groups=16, motion_layers_per_block=1
    )
    for name, parameter in adapter.named_parameters():
        if at_zero and ".proj_out." in name:
            torch.nn.init.zeros_(parameter)
    model = UNetMotionModel.from_unet2d(unet, adapter).eval()
    return model(NOISE[:, :, None], 5, TEXT).sample[:, :, 0]


torch.manual_seed(0)
unet = UNet2DConditionModel(up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **BLOCKS).eval()
with torch.no_grad():
    alone = unet(NOISE, 5, TEXT).sample
    down, mid = ControlNetModel(**BLOCKS).eval()(NOISE, 5, TEXT, torch.rand(1, 3, 64, 64), return_dict=False)
    controlled = unet(
        NOISE, 5, TEXT, down_block_additional_residuals=down, mid_block_additional_residual=mid
    ).sample
    of = {"a new ControlNet": controlled, "a new motion module": with_module(unet, at_zero=False),
          "the same with last projections of 0": with_module(unet, at_zero=True)}  # fmt: skip
print(f"torch {version('torch')}, diffusers {version('diffusers')}: change of the model's prediction, of its norm")
changes = {name: ((one - alone).norm() / alone.norm()).item() for name, one in of.items()}
for name, change in changes.items():
    print(f"{name}: {change:.4f}")
control, module, at_zero = changes.values()
as_stated = control < 1e-5 and at_zero < 1e-5 and module > 0.2
sys.exit(0 if as_stated else "This is no longer so.")
END
