#!/bin/sh
# mergekit 0.1.5: DARE does not multiply the kept values by 1 / density; the factor depends on which values were kept.
#
# Expected: "drop and rescale" drops each change with probability 1 - density and multiplies the others by 1 / density,
# so that the change keeps its expected value; at density 0.3 the factor is 3.33 in each tensor and with each seed.
# Instead: `dare_linear` and `dare_ties` scale so that the sum of absolute values stays what it was. The factor is
# another one in each tensor and with each seed. In a large dense tensor it is near 3.33; with 90 changed values it goes
# from 2.2 to 5.2. If one large value carries the change, a draw that keeps it scales by hardly more than 1, and one
# that drops it blows up the small ones until they carry the whole sum.
# Why it matters: deltas that are sparse or have few large values (biases, norms, sparse fine-tuning) are merged at
# strengths that nobody chose, layer by layer. PEFT's `dare_linear` has the fixed factor: results of the two differ.
# With rescale off and the weight divided by the density it is DARE again.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 mergekit==0.1.5 peft==0.21.2
"$dir/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import torch
from mergekit.merge_methods import merge_tensors
from peft.utils.merge_utils import dare_linear


def mergekit(change):
    parameters = {"weight": 1.0, "density": 0.3}
    base = torch.zeros_like(change)
    return merge_tensors([base, change], "dare_linear", parameters=parameters, base_index=0)


def peft(change):
    return dare_linear([change], torch.ones(1), 0.3)


def factors(merge, change):
    """The smallest and the largest factor that the kept values of one change got in 50 draws."""
    found = []
    for seed in range(50):
        torch.manual_seed(seed)
        merged = merge(change)
        kept = merged != 0
        found += (merged[kept] / change[kept]).tolist()
    return round(min(found), 2), round(max(found), 2)


torch.manual_seed(0)
sparse = torch.zeros(100, 100)
sparse.view(-1)[torch.randperm(10_000)[:90]] = torch.randn(90)
one_large = torch.cat([torch.full((89,), 0.01), torch.tensor([10.0])])
seen = {name: [factors(merge, change) for change in (torch.randn(100, 100), sparse, one_large)]
        for name, merge in (("mergekit", mergekit), ("peft", peft))}
print(f"torch {version('torch')}, mergekit {version('mergekit')}, peft {version('peft')}: factors at density 0.3")
for name, (dense, few, large) in seen.items():
    print(f"{name}: 10,000 values {dense}, 90 values {few}, 90 with one large {large}")
dense, few, large = seen["mergekit"]
as_stated = 3.1 < dense[0] < dense[1] < 3.6 and few[0] < 2.7 and few[1] > 4.3 and large[0] < 1.2 and large[1] > 20
as_stated = as_stated and seen["peft"] == [(3.33, 3.33)] * 3
sys.exit(0 if as_stated else "This is no longer so.")
END
