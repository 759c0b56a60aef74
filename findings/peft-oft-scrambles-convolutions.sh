#!/bin/sh
# PEFT 0.21.2: a new OFT adapter on a 3×3 convolution mixes up the places of its input and makes it nine times larger.
#
# Expected: OFT turns the weights, and starts with a turn by nothing: a new adapter leaves the model as it was, as LoRA
# does and, on the same layer, BOFT and HRA. Merging gives what the adapter gave.
# Instead: the input is cut into overlapping patches, turned, and put together with torch's fold, in another order of
# axes than fold takes them, and without dividing by how many patches overlap. An even picture comes back k × k times
# as large, any other one scrambled, with no likeness to the right output. Merging turns the weights, and rightly so: a
# merged adapter is another model than the one that was trained. 1×1 kernels and linear layers are right.
# Why it matters: training starts from a model that draws noise, and what it learned is gone once merged; a file of OFT
# for convolutions means one thing in PEFT's forward and another everywhere else.
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
from peft import BOFTConfig, HRAConfig, OFTConfig, get_peft_model

KINDS = {
    "OFT": OFTConfig(r=0, oft_block_size=4, target_modules=["0"]),
    "BOFT": BOFTConfig(boft_block_size=4, target_modules=["0"]),
    "HRA": HRAConfig(r=4, target_modules=["0"]),
}
torch.manual_seed(0)
picture, even = torch.randn(1, 8, 32, 32), torch.ones(1, 8, 32, 32)
print(f"torch {version('torch')}, peft {version('peft')}: the output of a layer with a new, untrained adapter")
seen = {}
for kind, config in KINDS.items():
    for size in (1, 3):
        base = torch.nn.Sequential(torch.nn.Conv2d(8, 4, size, padding=size // 2, bias=False)).requires_grad_(False)
        adapted = get_peft_model(copy.deepcopy(base), config).eval()
        factor = float((adapted(even) / base(even))[..., 8:24, 8:24].mean())
        likeness = float(torch.cosine_similarity(adapted(picture).flatten(), base(picture).flatten(), dim=0))
        merged = torch.allclose(adapted.merge_and_unload()(picture), base(picture), atol=1e-5)
        seen[kind, size] = round(factor, 2), round(likeness, 2), merged
        print(f"{kind}, {size}×{size}: an even picture times {factor:.2f}, likeness of noise to the right output"
              f" {likeness:.2f}; right once merged: {merged}")
factor, likeness, merged = seen.pop(("OFT", 3))
as_stated = factor == 9 and abs(likeness) < 0.2 and merged and set(seen.values()) == {(1.0, 1.0, True)}
sys.exit(0 if as_stated else "This is no longer so.")
END
