#!/bin/sh
# peft 0.21.2 and lycoris-lora 4.1.3 read one LoKr file at two strengths if both factors of a layer are full matrices.
#
# Expected: a LoKr layer is applied at alpha / rank in both, whose names for the tensors are the same.
# Instead: if neither factor is split into two low-rank ones, LyCORIS leaves alpha out (there is no rank to divide by:
# 1), whereas PEFT still multiplies by alpha / r of its config. Full factors are what PEFT itself makes wherever r is at
# least half of the larger factor's size, without a word. Trained with r 64, alpha 1, the layer is 64 times as strong in
# LyCORIS and all that follow it as it was in PEFT. With a split factor both agree.
# Why it matters: LoKr with "full matrix" is a common setting, and small layers get full factors at any rank: one file
# then mixes layers that are right with layers that are wrong. A converter between the two has to scale those layers.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 peft==0.21.2 lycoris-lora==4.1.3
"$dir/venv/bin/python" -W ignore - <<'END'
import logging
import sys
from importlib.metadata import version

import torch
from lycoris.modules.lokr import LokrModule
from peft import LoKrConfig, get_peft_model, get_peft_model_state_dict

logging.disable(logging.WARNING)
PARTS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "unused", "lokr_t2")


@torch.no_grad()
def lycoris_share(rank, alpha):
    """The parts of a layer trained in PEFT, and LyCORIS' change as a multiple of PEFT's."""
    torch.manual_seed(0)
    config = LoKrConfig(target_modules=["0"], r=rank, alpha=alpha, decompose_factor=8)
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(256, 256)), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    expected = model.base_model.model[0].get_delta_weight("default")
    file = {name.split(".")[-1]: tensor for name, tensor in get_peft_model_state_dict(model).items()}
    parts = [file.get(name) for name in PARTS]
    layer = LokrModule.make_module_from_state_dict("it", torch.nn.Linear(256, 256), *parts, torch.tensor(alpha), None)
    x = torch.randn(16, 256)
    change, expected = layer.eval().bypass_forward_diff(x), x @ expected.T
    share = ((change * expected).sum() / expected.square().sum()).item()
    assert torch.allclose(change, share * expected, rtol=1e-3, atol=1e-3 * change.abs().max())
    return sorted(file), round(share, 3)


print(f"torch {version('torch')}, peft {version('peft')}, lycoris-lora {version('lycoris-lora')}")
as_stated = True
for rank, alpha, stated in ((4, 2.0, 1), (4, 1.0, 1), (16, 8.0, 2), (64, 1.0, 64)):
    names, share = lycoris_share(rank, alpha)
    print(f"rank {rank}, alpha {alpha:g}, {' '.join(names)}: change in LyCORIS / change in PEFT {share}")
    as_stated = as_stated and share == stated and (names == ["lokr_w1", "lokr_w2"]) == (rank > 4)
sys.exit(0 if as_stated else "This is no longer so.")
END
