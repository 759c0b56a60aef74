#!/bin/sh
# diffusers 0.42.1: when some of the LoRAs are fused, the others have no effect, and weights set later none either.
#
# Expected: `fuse_lora(adapter_names=["a"])` writes that LoRA into the weights; "b", active beside it, goes on working,
# and `set_adapters("b", 2.0)` sets its strength. This is what one fuses a part for.
# Instead: a layer that has anything fused into it computes with its weights alone. "b" is active, listed, and not
# computed, from then on; `set_adapters` takes any strength, for "a" as for "b", and changes nothing. Not a word of it.
# (PEFT's own `set_adapter` unfuses first and warns; diffusers passes it by. Its `merge_adapter` silences likewise.)
# Why it matters: a speed or acceleration LoRA is fused and the style beside it is gone, or a strength is tuned on
# pictures that do not depend on it.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0
"$dir/venv/bin/python" - 2> "$dir/errors" <<'END' || { cat "$dir/errors" >&2; exit 1; }
import sys
import warnings
from importlib.metadata import version

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

torch.manual_seed(0)
model = UNet2DConditionModel(
    block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1, cross_attention_dim=32,
    attention_head_dim=4,
).eval().requires_grad_(False)
layer = model.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
base, values = layer.weight.clone(), torch.eye(64)
changes = {}
for name in ("a", "b"):
    model.add_adapter(LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=False), name)
    model.set_adapters(name)
    layer = model.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    changes[name] = layer(values).T - base


def strengths():
    """With what strengths the layer computes: the least squares in the changes of "a" and "b"."""
    basis = torch.stack([change.flatten() for change in changes.values()], 1)
    found = torch.linalg.lstsq(basis, (layer(values).T - base).reshape(-1, 1)).solution
    return [round(float(strength), 2) + 0.0 for strength in found]


seen = {}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    model.set_adapters(["a", "b"])
    seen["both active"] = strengths()
    model.fuse_lora(adapter_names=["a"])
    seen["a fused"] = strengths()
    model.set_adapters(["b"], [2.0])
    seen["a fused, then b set to 2"] = strengths()
    model.set_adapters(["a", "b"], [0.5, 2.0])
    seen["a fused, then a set to 0.5 and b to 2"] = strengths()
said = [str(warning.message) for warning in said if "merge" in str(warning.message).lower()]
print(f"torch {version('torch')}, diffusers {version('diffusers')}, peft {version('peft')}: strengths of [a, b]")
for state, found in seen.items():
    print(f"{state}: {found}")
print(f"active: {model.active_adapters()}; warnings: {said or 'none'}")
sys.exit(0 if list(seen.values()) == [[1, 1], [1, 0], [1, 0], [1, 0]] and not said else "This is no longer so.")
END
