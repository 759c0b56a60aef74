#!/bin/sh
# diffusers 0.42.1: group offloading to the disk computes with the weights of an earlier model of the same shape.
#
# Expected: apply_group_offloading(model, …, offload_to_disk_path=folder) writes this model's weights into the folder,
# and gives them back when a layer computes.
# Instead: a file that is already there is taken for this model's. Its name is made of the layer's name alone, so every
# model of one architecture has the same names: a fine-tuned model, one with a LoRA fused into it, another checkpoint,
# the same one tomorrow. The second model then gives the first one's output to the last digit, without a warning.
# Why it matters: who compares a tuned model with its base, or one fused LoRA with the next, and keeps one folder for
# offloading sees the first one again each time, and concludes that the tuning did nothing.
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
import tempfile
from importlib.metadata import version

import torch
from diffusers import UNet2DConditionModel
from diffusers.hooks import apply_group_offloading


def unet(seed):
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1, cross_attention_dim=32,
        attention_head_dim=4,
    ).eval()


@torch.no_grad()
def output(model):
    torch.manual_seed(2)
    return model(torch.randn(1, 4, 8, 8), 500, torch.randn(1, 5, 32)).sample


def offloaded(seed, folder):
    model, cpu = unet(seed), torch.device("cpu")
    apply_group_offloading(
        model, onload_device=cpu, offload_device=cpu, offload_type="leaf_level", offload_to_disk_path=folder
    )
    return output(model)


def same(one, other):
    return torch.allclose(one, other, atol=1e-5)


first, second = output(unet(0)), output(unet(1))
with tempfile.TemporaryDirectory() as shared, tempfile.TemporaryDirectory() as own:
    in_its_own = same(offloaded(1, own), second)
    first_there = same(offloaded(0, shared), first)
    after_another = offloaded(1, shared)
print(f"torch {version('torch')}, diffusers {version('diffusers')}: two models, offloaded to the disk")
print(f"each with a folder of its own: the same as in memory: {in_its_own and first_there}")
print(f"the second one in the first one's folder is itself: {same(after_another, second)}, "
      f"the first one: {same(after_another, first)}")
as_stated = in_its_own and first_there and same(after_another, first) and not same(first, second)
sys.exit(0 if as_stated else "This is no longer so.")
END
