#!/bin/sh
# PEFT 0.21.2: `unload()`, which gives the base model back, keeps the trained copies of modules and a mutilated base.
#
# Expected: "Return the base model by removing all the PEFT modules": the model from before, which a forward within
# `disable_adapter()` has with `modules_to_save` too.
# Instead: of the modules in `modules_to_save` the trained copies stay, and the base's own are gone. After PiSSA or
# OLoRA the part that they took out of the base's weights is missing from it: with `disable_adapter()` too, and for any
# other adapter that is put on this model. Of a plain LoRA it is right. Nothing is said.
# Why it matters: the base to compare with, to extract a difference from, or to train the next adapter on, without
# loading it anew, is not the base; what is trained on it fits no other.
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

KINDS = {
    "LoRA": {},
    "LoRA with modules_to_save": {"modules_to_save": ["1"]},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
}
torch.manual_seed(0)
base = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)).requires_grad_(False)
values = torch.randn(5, 32)


def wrong_by(outputs):
    return round(float((outputs - base(values)).norm() / base(values).norm()), 3)


print(f"torch {version('torch')}, peft {version('peft')}: how far from the base model's outputs")
seen = {}
for name, kind in KINDS.items():
    model = get_peft_model(copy.deepcopy(base), LoraConfig(r=8, lora_alpha=8, target_modules=["0"], **kind)).eval()
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += torch.randn(weight.shape) * 0.05
    with model.disable_adapter():
        disabled = wrong_by(model(values))
    seen[name] = disabled, wrong_by(model.unload()(values))
    print(f"{name}: disabled {seen[name][0]:.0%}, unloaded {seen[name][1]:.0%}")
plain, with_copies, *mutilated = seen.values()
as_stated = plain == (0, 0) and with_copies[0] == 0 and with_copies[1] > 0.1 and min(map(min, mutilated)) > 0.1
sys.exit(0 if as_stated else "This is no longer so.")
END
