#!/bin/sh
# PEFT 0.21.2: `adapter_names`, an adapter for each sample of a batch, is heeded by LoRA only and swallowed by the rest.
#
# Expected: `model(x, adapter_names=["a", "b", "__base__"])` gives each sample what its adapter alone would give, or an
# error that this kind cannot do so: DoRA has that error, and a plain LoRA is right.
# Instead: IA³, LoHa, LoKr, OFT, BOFT, HRA, VeRA, SHiRA and others take the argument, drop it, and give every sample
# what the active adapter says, also those that asked for "__base__". A name that does not exist is no error either.
# Why it matters: a server of several styles gives all of its users the same one, and a comparison of adapters in one
# batch, or of an adapter with its base, finds no difference.
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
    "DoRA": peft.LoraConfig(r=4, target_modules=["0"], use_dora=True),
    "IA³": peft.IA3Config(target_modules=["0"], feedforward_modules=[]),
    "LoHa": peft.LoHaConfig(r=4, target_modules=["0"]),
    "LoKr": peft.LoKrConfig(r=4, target_modules=["0"]),
    "OFT": peft.OFTConfig(r=0, oft_block_size=8, target_modules=["0"]),
    "BOFT": peft.BOFTConfig(boft_block_size=8, target_modules=["0"]),
    "HRA": peft.HRAConfig(r=4, target_modules=["0"]),
    "VeRA": peft.VeraConfig(r=4, target_modules=["0"]),
    "SHiRA": peft.ShiraConfig(r=4, target_modules=["0"]),
}
values, names = torch.ones(3, 32), ["a", "b", "__base__"]
print(f"torch {version('torch')}, peft {version('peft')}: the same sample three times, for {', '.join(names)}")


def outputs(kind):
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(32, 32))
    model = peft.get_peft_model(copy.deepcopy(base), KINDS[kind], adapter_name="a").eval()
    model.add_adapter("b", KINDS[kind])
    for name, weight in model.named_parameters():
        if {"a", "b"} & {*name.split(".")}:
            weight.data += torch.randn(weight.shape) * 0.3
    alone = [base(values)[2]]
    for name in ("b", "a"):
        model.set_adapter(name)
        alone.insert(0, model(values)[0])
    alone = torch.stack(alone)

    def given(asked):
        try:
            found = model(values, adapter_names=asked)
        except ValueError:
            return "an error"
        each = torch.allclose(found, alone, atol=1e-5)
        return "each its own" if each else "all a" if torch.allclose(found, alone[:1], atol=1e-5) else "neither"

    return given(names), given(["no such one"] * 3)


seen = {}
for kind in KINDS:
    seen[kind] = outputs(kind)
    print(f"{kind}: {seen[kind][0]}; for a name that does not exist: {seen[kind][1]}")
as_stated = seen.pop("LoRA") == ("each its own", "an error") and seen.pop("DoRA") == ("an error", "an error")
as_stated = as_stated and set(seen.values()) == {("all a", "all a")}
sys.exit(0 if as_stated else "This is no longer so.")
END
