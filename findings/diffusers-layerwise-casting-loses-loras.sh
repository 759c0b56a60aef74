#!/bin/sh
# diffusers 0.42.1: `enable_layerwise_casting` with patterns of one's own stores LoRAs in fp8, where they round to zero.
#
# Expected: the weights of the model are stored in 8 bits and the adapters are not: so it is by default, since they need
# hardly any memory. `skip_modules_pattern` says which modules are skipped besides.
# Instead: a pattern of one's own takes the place of that rule. The factors of an active LoRA become float8_e4m3fn,
# which has nothing between 0 and 0.002: of factors that start at zero and were trained by a small rate most values are
# lost, of a LoRA with values about 0.0002 all of it. It is listed as active and adds nothing; a strong one is kept, in
# coarse steps. Passing diffusers' own DEFAULT_SKIP_MODULES_PATTERN does so too.
# Why it matters: the LoRA seems not to work on this machine, and works on the one with more memory. Saved from there,
# the file holds the zeros.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0
"$dir/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import torch
from diffusers import UNet2DConditionModel
from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN
from diffusers.utils import logging
from peft import LoraConfig

logging.set_verbosity_info()
torch.set_grad_enabled(False)


def effect(values, **casting):
    """The size of the LoRA's effect with casting, as a part of what it was before."""
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1, cross_attention_dim=32,
        attention_head_dim=4,
    ).eval()
    model.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.copy_(torch.randn(weight.shape) * values)
    noise, text = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 32)
    sizes = []
    for _ in range(2):
        model.enable_adapters()
        changed = model(noise, 5, text).sample
        model.disable_adapters()
        sizes.append(float((changed - model(noise, 5, text).sample).norm()))
        if len(sizes) == 1:
            model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32, **casting)
    return sizes[1] / sizes[0]


print(f"torch {version('torch')}, diffusers {version('diffusers')}, peft {version('peft')}: left of a LoRA's effect")
seen = {}
for values in (0.0002, 0.02):
    for name, casting in {
        "no pattern": {},
        "the default patterns": {"skip_modules_pattern": DEFAULT_SKIP_MODULES_PATTERN},
        "one's own": {"skip_modules_pattern": ("norm",)},
    }.items():
        seen[values, name] = effect(values, **casting)
        print(f"values about {values}, {name} given: {seen[values, name]:.0%}")
as_stated = all(
    left == 0 if values < 0.001 and name != "no pattern" else abs(left - 1) < 0.1
    for (values, name), left in seen.items()
)
sys.exit(0 if as_stated else "This is no longer so.")
END
