#!/bin/sh
# lycoris-lora 4.1.3: merging a LoKr or LoHa applies alpha / rank twice; its own forward applies it once.
#
# Expected: `merge_to` gives the model that the network gave while it hung on the model, as it does for LoRA (LoCon).
# Instead: get_weight() of LoKr and LoHa scales by alpha / rank already, and get_diff_weight(), which merging uses, once
# more. With alpha = rank / 2 half of the trained change arrives, with alpha = rank / 8 an eighth, with alpha = 2 rank
# twice as much. With alpha = rank all agree, so tests at that setting see nothing.
# Why it matters: alpha below rank is what most recipes use. The merged checkpoint is weaker than the samples made in
# training, and than the same file in programs that apply alpha / rank once. Whoever converts such files has to follow
# the forward (what was trained), not the merge.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 lycoris-lora==4.1.3
"$dir/venv/bin/python" -W ignore - <<'END'
import logging
import sys
from importlib.metadata import version

import torch
from lycoris import LycorisNetwork, create_lycoris

logging.disable(logging.WARNING)


@torch.no_grad()
def merged_share(algo, rank, alpha):
    """The change of a linear layer's output after merging, as a share of the change before."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
    LycorisNetwork.apply_preset({"target_module": ["Sequential"]})
    network = create_lycoris(model, 1.0, linear_dim=rank, linear_alpha=alpha, algo=algo, factor=4).eval()
    x = torch.randn(16, 64)
    before = model(x)
    network.apply_to()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    applied = model(x) - before
    network.restore()
    network.merge_to(1.0)
    merged = model(x) - before
    share = ((merged * applied).sum() / (applied * applied).sum()).item()
    assert torch.allclose(merged, share * applied, rtol=1e-3, atol=1e-3 * merged.abs().max())
    return round(share, 3)


print(f"torch {version('torch')}, lycoris-lora {version('lycoris-lora')}: change after merging / change before")
as_stated = True
for ratio in (1, 0.5, 0.125, 2):
    lora, loha, lokr = (merged_share(algo, 4, 4 * ratio) for algo in ("lora", "loha", "lokr"))
    print(f"alpha / rank {ratio}: LoRA {lora}, LoHa {loha}, LoKr {lokr}")
    as_stated = as_stated and (lora, loha, lokr) == (1, ratio, ratio)
sys.exit(0 if as_stated else "This is no longer so.")
END
