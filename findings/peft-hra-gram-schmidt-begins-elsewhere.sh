#!/bin/sh
# PEFT 0.21.2: a new HRA adapter with `apply_GS=True` is not the base model, by 40 % and by rounding noise.
#
# Expected: with `init_weights=True`, the default, HRA begins as the base model: its reflections are made in equal
# pairs, each of which undoes the other. The option makes the reflections orthogonal to each other (Gram-Schmidt).
# Instead: of a pair of equal vectors Gram-Schmidt leaves nothing of the second but rounding, which is then given the
# length 1: instead of being undone, the first reflection stays and a second one, of noise, is added. A model in fp64
# begins elsewhere than the same one in fp32, by as much as both are from the base. Without the option it is right.
# Why it matters: training begins with a broken model, and an adapter that was hardly trained is another one on each
# processor and in each dtype, for what its file says is not what it does.
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
from peft import HRAConfig, get_peft_model

print(f"torch {version('torch')}, peft {version('peft')}: a layer with a new HRA adapter, untrained")
torch.manual_seed(0)
base, values = torch.nn.Sequential(torch.nn.Linear(320, 320)).requires_grad_(False), torch.randn(64, 320)
new = {}
for gram_schmidt in (False, True):
    torch.manual_seed(1)
    config = HRAConfig(r=8, apply_GS=gram_schmidt, target_modules=["0"])
    new[gram_schmidt] = get_peft_model(copy.deepcopy(base), config).eval()


def apart(one, other):
    return float((one.float() - other.float()).norm() / other.float().norm())


seen = {}
for gram_schmidt, model in new.items():
    fp32, fp64 = model(values), copy.deepcopy(model).double()(values.double())
    seen[gram_schmidt] = apart(fp32, base(values)), apart(fp64, fp32)
    from_base, from_fp32 = seen[gram_schmidt]
    print(f"apply_GS={gram_schmidt}: from the base {from_base:.1%}, fp64 from fp32 {from_fp32:.1%}")
as_stated = max(seen[False]) < 1e-4 and min(seen[True]) > 0.1
sys.exit(0 if as_stated else "This is no longer so.")
END
