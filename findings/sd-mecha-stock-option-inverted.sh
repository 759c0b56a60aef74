#!/bin/sh
# sd-mecha 1.1.8: TIES multiplies by Model Stock's factor unless it is asked to, and two sparse deltas become nothing.
#
# Expected: `apply_stock` of `ties_sum_extended`, `ties_sum_with_dropout` and `add_ties_with_dare`, False by default, is
# described as a special mode, "TIES-STOCK": without it a merge is TIES, as `ties_sum` has it.
# Instead: it is the other way round: with False the factor is applied, with True it is not. Model Stock's factor comes
# from the cosine between the models' deltas, row by row, and is 0 where they have nothing in common: two unrelated
# dense deltas lose a fifth of their length, two sparse ones without a common element all of it. The result is the base,
# without a word. Equal deltas, whose cosine is 1, come out right either way.
# Why it matters: sparse deltas and LoRAs of different subjects are the ones that TIES and DARE are for; whoever merges
# such models with the defaults gets the base model back and takes the deltas for too weak.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6 scipy==1.17.1 \
    sd-mecha==1.1.8
"$dir/venv/bin/python" -W ignore - 2> /dev/null <<'END'
import sys
from importlib.metadata import version

import sd_mecha
import torch

KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
torch.manual_seed(0)
base = torch.randn(320, 320)
dense = [torch.randn(320, 320) * 0.01 for _ in range(2)]
places = torch.rand(320, 320)
sparse = [dense[0] * (places < 0.05), dense[1] * (places > 0.95)]
PAIRS = {"equal": [dense[0], dense[0]], "dense, unrelated": dense, "sparse, nothing in common": sparse}


def model(weight):
    return sd_mecha.model({KEY: weight}, config="sd1-ldm")


def merged(method, deltas, **options):
    """The length of the merged delta."""
    parts = [sd_mecha.subtract(model(base + delta), model(base)) for delta in deltas]
    recipe = getattr(sd_mecha, method)(*parts, k=1.0, **options)
    whole = dict(merge_dtype=torch.float32, output_dtype=torch.float32, strict_merge_space="delta")
    return float(sd_mecha.merge(recipe, **whole)[KEY].norm())


print(f"torch {version('torch')}, sd-mecha {version('sd-mecha')}: length of the merged delta, of that of `ties_sum`")
seen = {}
for pair, deltas in PAIRS.items():
    plain = merged("ties_sum", deltas)
    for method, dropped in (("ties_sum_extended", {}), ("ties_sum_with_dropout", {"probability": 0.0})):
        for options in ({}, {"apply_stock": True}):
            share = merged(method, deltas, **dropped, **options) / plain
            seen.setdefault((pair, bool(options)), []).append(share)
            print(f"{pair}: {method}, {'apply_stock=True' if options else 'by default'}: {share:.2f}")
as_stated = all(abs(share - 1) < 0.01 for (_, asked), shares in seen.items() if asked for share in shares)
as_stated = as_stated and all(abs(share - 1) < 0.01 for share in seen["equal", False])
as_stated = as_stated and max(seen["dense, unrelated", False]) < 0.9
as_stated = as_stated and seen["sparse, nothing in common", False] == [0, 0]
sys.exit(0 if as_stated else "This is no longer so.")
END
