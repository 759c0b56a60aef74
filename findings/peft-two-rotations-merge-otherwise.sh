#!/bin/sh
# PEFT 0.21.2: two OFT adapters at a time turn one way round in the forward and the other way round once merged.
#
# Expected: merging the active adapters gives what they give unmerged, as documented; with two LoRAs, BOFTs or HRAs it
# does, for square layers and others.
# Instead: rotations do not commute, and OFT's forward applies them in the order in which they are active, its merge in
# the opposite one: what is merged is what [b, a] would give, to rounding, when [a, b] was active. For C3A the second
# adapter of a forward takes the first one's output in place of the layer's input (for layers that are not square that
# is an error), while merging adds two deltas of the same input. One adapter alone is right. Nothing is said.
# Why it matters: a subject and a style that look right together become another picture when they are merged for use.
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

import peft
import torch

KINDS = {
    "LoRA": peft.LoraConfig(r=4, target_modules=["0"]),
    "BOFT": peft.BOFTConfig(boft_block_size=8, target_modules=["0"]),
    "HRA": peft.HRAConfig(r=4, target_modules=["0"]),
    "OFT": peft.OFTConfig(r=0, oft_block_size=8, target_modules=["0"]),
    "C3A": peft.C3AConfig(block_size=8, target_modules=["0"]),
}
print(f"torch {version('torch')}, peft {version('peft')}: how far the merged model is from the unmerged one")


def apart(one, other):
    return float((one - other).norm() / other.norm())


seen = {}
for kind, config in KINDS.items():
    torch.manual_seed(0)
    values, base = torch.randn(64, 32), torch.nn.Sequential(torch.nn.Linear(32, 32))
    model = peft.get_peft_model(base, config, adapter_name="a").eval()
    model.add_adapter("b", config)
    for name, weight in model.named_parameters():
        if {"a", "b"} & {*name.split(".")}:
            weight.data += torch.randn(weight.shape) * 0.3
    unmerged, merged = {}, {}
    for active in (["a"], ["a", "b"], ["b", "a"]):
        model.base_model.set_adapter(active)
        unmerged[" ".join(active)] = model(values)
        merged[" ".join(active)] = copy.deepcopy(model).merge_and_unload()(values)
    seen[kind] = (
        apart(merged["a"], unmerged["a"]), apart(merged["a b"], unmerged["a b"]), apart(merged["a b"], unmerged["b a"])
    )
    one, both, turned = seen[kind]
    print(f"{kind}: one adapter {one:.1%}, two {both:.1%}, two from those in the other order {turned:.1%}")
is_right = {kind: both < 1e-4 for kind, (_, both, _) in seen.items()}
as_stated = all(one < 1e-4 for one, _, _ in seen.values()) and seen["OFT"][2] < 1e-4
as_stated = as_stated and is_right == {"LoRA": True, "BOFT": True, "HRA": True, "OFT": False, "C3A": False}
sys.exit(0 if as_stated else "This is no longer so.")
END
