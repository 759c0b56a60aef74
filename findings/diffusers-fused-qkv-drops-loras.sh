#!/bin/sh
# diffusers 0.42.1: a LoRA put on a UNet after fuse_qkv_projections() hardly has an effect, and nothing says so.
#
# Expected: fuse_qkv_projections() is a matter of speed. A LoRA on to_q, to_k and to_v has the effect that it has
# without it, or is refused; fused and then unfused it is the model from before.
# Instead: the fused attention computes with copies of these weights (to_qkv, to_kv). The adapter is put around the
# originals, which stand idle but for to_q of the cross-attention. Of the LoRA's effect a few per cent are left here.
# It is there, active and listed; after unfuse_qkv_projections() all of it is there. The other order is no better: what
# is fused are the base's weights, without the LoRA.
# Why it matters: a pipeline that was made faster so shows a style too weakly, whatever adapter is loaded, and its
# trainer, who trains factors beside weights that do not compute, gets gradients for some of them only.
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


def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1, cross_attention_dim=32,
        attention_head_dim=4,
    ).eval()


def with_lora(model):
    torch.manual_seed(1)
    model.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    return model


@torch.no_grad()
def output(model):
    torch.manual_seed(2)
    return model(torch.randn(1, 4, 8, 8), 500, torch.randn(1, 5, 32)).sample


plain = output(unet())
full = output(with_lora(unet())) - plain


def share(model):
    """Of the LoRA's effect, what this model shows."""
    return (((output(model) - plain) * full).sum() / full.square().sum()).item()


fused = unet()
fused.fuse_qkv_projections()
assert torch.allclose(output(fused), plain, atol=1e-5)
fused_first = share(with_lora(fused))
fused.unfuse_qkv_projections()
unfused = share(fused)
fused_last = with_lora(unet())
fused_last.fuse_qkv_projections()
fused_last = share(fused_last)
print(f"torch {version('torch')}, diffusers {version('diffusers')}, PEFT {version('peft')}: share of a LoRA's effect")
print(f"put on a fused UNet {fused_first:.3f}, unfused again {unfused:.3f}; fused with the LoRA on it {fused_last:.3f}")
as_stated = max(abs(fused_first), abs(fused_last)) < 0.5 and abs(unfused - 1) < 1e-3
sys.exit(0 if as_stated else "This is no longer so.")
END
