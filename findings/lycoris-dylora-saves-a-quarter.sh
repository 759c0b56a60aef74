#!/bin/sh
# lycoris-lora 4.1.3: a DyLoRA's file has a quarter of what was trained, and each merge of the network is another one.
#
# Expected: loaded at strength 1, a saved DyLoRA does what the trained network does at its full rank; out of training
# the network is a fixed function.
# Instead: in training the change is scaled by alpha / number of blocks in use, as if the rank were counted in blocks;
# the file has alpha and all rows, which every reader scales by alpha / rank. So it is weaker by the size of a block,
# 4 unless set. And the rank is drawn at random in evaluation and on merging too: samples drawn in training, and a model
# that the network was merged into, are those of some rank. With blocks of 1 the scale is right.
# Why it matters: the result looks undertrained, the more so the larger the block, and two merges of it differ.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6 \
    lycoris-lora==4.1.3 toml==0.10.2
"$dir/venv/bin/python" -W ignore - <<'END'
import logging
import random
import sys
from importlib.metadata import version

import torch
from lycoris import LycorisNetwork, create_lycoris, create_lycoris_from_weights

logging.disable(logging.WARNING)
LycorisNetwork.apply_preset({"target_name": ["0"]})
RANK = 8


def base():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(32, 32)).requires_grad_(False)


def trained(algo, **options):
    network = create_lycoris(base(), 1.0, linear_dim=RANK, linear_alpha=RANK, algo=algo, **options)
    network.apply_to()
    torch.manual_seed(1)
    for weight in network.parameters():
        weight.data = torch.randn(weight.shape)
    return network.eval()


def change_from_file(network):
    model = base()
    loaded, _ = create_lycoris_from_weights(1.0, None, model, weights_sd=dict(network.state_dict()))
    loaded.merge_to(1.0)
    return model[0].weight - base()[0].weight


print(f"torch {version('torch')}, lycoris-lora {version('lycoris-lora')}: rank and alpha {RANK}")
seen = {}
for name, algo, options, full_rank in (
    ("LoRA", "lora", {}, {}),
    ("DyLoRA, blocks of 1", "dylora", {"block_size": 1}, {"rank": RANK - 1}),
    ("DyLoRA, blocks of 4", "dylora", {}, {"rank": RANK - 4}),  # its last block begins there
):
    network = trained(algo, **options)
    layer = network.loras[0]
    change = layer.get_diff_weight(**full_rank)[0]
    random.seed(0)
    merges = {round(float(layer.get_merged_weight()[0].norm()), 3) for _ in range(50)}
    seen[name] = round(float(change_from_file(network).norm() / change.norm()), 3), len(merges)
    print(f"{name}: the file has {seen[name][0]:.0%} of what was trained; 50 merges, results: {len(merges)}")
as_stated = list(seen.values()) == [(1.0, 1), (1.0, 8), (0.25, 2)]
sys.exit(0 if as_stated else "This is no longer so.")
END
