#!/bin/sh
# mergekit 0.1.5: "breadcrumbs" turns a sparse delta into nothing and returns the base model, without a word.
#
# Expected: gamma (default 0.01) drops the outliers of the change, the largest 1 % of what was trained, and density
# keeps most of the rest.
# Instead: gamma counts in all elements of the tensor, those that never changed too. Of a tensor of which 0.9 % differs
# from the base, every changed element is among the largest 1 % and is dropped; what is "kept" are unchanged zeros. At 2
# % half is lost, the larger half. Of a dense change the same call keeps 90 %, as asked.
# Why it matters: a sparse fine-tuned model (SaRA, SHiRA, a delta cut to its largest values) has just such changes. The
# merged file loads and works: it is the base. Set gamma to 0 for sparse deltas.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 mergekit==0.1.5
"$dir/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import torch
from mergekit.merge_methods import merge_tensors


def kept(changed, **gamma):
    """How many of ``changed`` elements, the only ones in 10,000 that differ from the base, still do after merging."""
    torch.manual_seed(0)
    base = torch.randn(100, 100)
    tuned = base.clone()
    tuned.view(-1)[torch.randperm(base.numel())[:changed]] += 1 + torch.rand(changed)
    parameters = {"weight": 1.0, "density": 0.9, **gamma}
    merged = merge_tensors([base, tuned], "breadcrumbs", parameters=parameters, base_index=0)
    return (merged != base).sum().item()


dense, two_percent, sparse, no_gamma = kept(10_000), kept(200), kept(90), kept(90, gamma=0.0)
print(f"torch {version('torch')}, mergekit {version('mergekit')}: breadcrumbs, density 0.9, changed elements kept")
print(f"of 10,000: {dense}, of 200: {two_percent}, of 90: {sparse}, of 90 with gamma 0: {no_gamma}")
as_stated = (dense, two_percent, sparse, no_gamma) == (9000, 100, 0, 90)
sys.exit(0 if as_stated else "This is no longer so.")
END
