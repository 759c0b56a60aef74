#!/bin/sh
# PEFT 0.21.2: constrained OFT (`coft=True`) with the default `eps` learns next to nothing, however long it is trained.
#
# Expected: COFT is OFT that stays near the base: slower, but it learns, and `eps`, "the freedom of rotation", is to be
# left at its default of 6e-5 unless one knows better.
# Instead: every forward shortens, in place, what was learned of a block to a length of eps, less with several blocks:
# each step of the optimizer is undone before it is of use, and an output moves by a fiftieth of a thousandth. The loss
# does not fall, gradients are there, nothing is said. What is saved is the optimizer's last step, which does nothing
# either. With eps=1 or without the constraint it learns.
# Why it matters: hours of training for the base model; whoever compares methods finds that COFT keeps the base best.
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
from peft import OFTConfig, get_peft_model

KINDS = {"OFT": {}, "COFT, eps=1": {"coft": True, "eps": 1.0}, "COFT": {"coft": True}}
torch.manual_seed(0)
base, values = torch.nn.Sequential(torch.nn.Linear(32, 32)).requires_grad_(False), torch.randn(64, 32)
turn = torch.randn(32, 32) * 0.1
wanted = base(values @ torch.matrix_exp(turn - turn.T))
print(f"torch {version('torch')}, peft {version('peft')}: a layer learns the same layer, turned; 500 steps of Adam")
left, learned = {}, {}
for kind, options in KINDS.items():
    config = OFTConfig(r=0, oft_block_size=32, target_modules=["0"], **options)
    model = get_peft_model(copy.deepcopy(base), config)
    before = float((model(values) - wanted).square().mean())
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(parameters, 0.01)
    for _ in range(500):
        loss = (model(values) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    left[kind], learned[kind] = float(loss.detach()) / before, float(torch.cat(parameters).detach().norm())
    print(f"{kind}: {left[kind]:.2%} of the loss is left; length of what would be saved {learned[kind]:.1f}")
as_stated = left["OFT"] < 0.1 and left["COFT, eps=1"] < 0.5 and left["COFT"] > 0.999 and learned["COFT"] > 0.1
sys.exit(0 if as_stated else "This is no longer so.")
END
