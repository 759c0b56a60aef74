#!/bin/sh
# PEFT 0.21.2: an adapter combined of rsLoRA adapters is √rank times too strong; one of DoRAs forgets the magnitudes.
#
# Expected: `add_weighted_adapter` with one adapter at weight 1 and "svd" or "cat", precise ones by its documentation,
# makes an adapter that does the same.
# Instead: the factors it writes include the scale already, and it sets alpha to the rank for a scale of 1. But it takes
# all else from the first adapter, and with `use_rslora` the scale is alpha / √rank: four times too much at rank 16,
# eleven times at rank 128. A DoRA's result is a DoRA whose magnitudes are the base model's, not the trained ones; with
# `lora_bias` the trained biases are left out, and random ones stand in their place if the adapter began at random.
# All kinds of combination do so, without a word; merging into the weights and combining these is right.
# Why it matters: rsLoRA is what large ranks are trained with, and an overdriven mix is taken for two LoRAs that do not
# go together.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6 peft==0.21.2
"$dir/venv/bin/python" -W ignore - <<'END'
import copy
import sys
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model

torch.manual_seed(0)
base = torch.nn.Sequential(torch.nn.Linear(64, 64)).requires_grad_(False)
values = torch.randn(5, 64)


def wrong_by(combination, **kind):
    """The distance of the new adapter's effect from that of the only one it was made of, as a part of the latter."""
    config = LoraConfig(r=16, lora_alpha=16, target_modules=["0"], init_lora_weights=False, **kind)
    model = get_peft_model(copy.deepcopy(base), config, adapter_name="trained").eval()
    layer = model.base_model.model[0]
    if config.use_dora:
        layer.lora_magnitude_vector["trained"].weight.data *= 1.5
    if config.lora_bias:
        layer.lora_B["trained"].bias.data += 1
    trained = model(values)
    model.add_weighted_adapter(["trained"], [1.0], "combined", combination_type=combination)
    model.set_adapter("combined")
    return float((model(values) - trained).norm() / (trained - base(values)).norm())


print(f"torch {version('torch')}, peft {version('peft')}: one adapter of rank 16, combined at weight 1, is wrong by")
seen = {
    (name, combination): wrong_by(combination, **kind)
    for name, kind in {
        "LoRA": {}, "rsLoRA": {"use_rslora": True}, "DoRA": {"use_dora": True}, "LoRA with bias": {"lora_bias": True},
    }.items()
    for combination in ("svd", "cat", "linear")
}
for (name, combination), wrong in seen.items():
    print(f"{name}, {combination}: {wrong:.0%}")
as_stated = all(
    wrong < 1e-4 if name == "LoRA" else abs(wrong - 3) < 1e-3 if name == "rsLoRA" else wrong > 0.3
    for (name, _), wrong in seen.items()
)
sys.exit(0 if as_stated else "This is no longer so.")
END
