#!/bin/sh
# datasets 5.2.0: a `map` that only looks at pictures saves the JPEGs again, at quality 75 and with halved colours.
#
# Expected: `map(lambda e: {"caption": describe(e["image"])})` adds a column. The pictures stay as they are.
# Instead: a column that the function has read counts as changed. Each picture that the data set holds as bytes (a set
# from the Hub, or after `save_to_disk`) is encoded anew, in its own format with Pillow's defaults, whether the function
# returns it or not: a JPEG of quality 98 becomes one of 75. Each further `map` does it again. `filter` does not; nor
# `map` with `input_columns` of others, or over a folder of files; PNGs are not harmed.
# Why it matters: a set is captioned, measured, tagged by a score in a few passes, and each takes a bit of the detail
# and of the colours that somebody wants to train on. Nothing fails; the files only get smaller.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pillow==13.0.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" -W ignore - "$dir" <<'END'
import sys
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

datasets.disable_progress_bars()
datasets.logging.set_verbosity_error()
there = Path(sys.argv[1], "pictures")
there.mkdir()
spots = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
Image.fromarray(spots).resize((128, 128), Image.Resampling.BICUBIC).save(there / "a.jpg", quality=98, subsampling=0)
original = np.asarray(Image.open(there / "a.jpg"), dtype=float)


def width(example):
    return {"width": example["image"].width}


def state(pictures):
    """The bytes of the picture's file, and how far its pixels are from the original's, 0 to 255, on average."""
    held = pictures.with_format("arrow")[:]["image"][0].as_py()["bytes"]
    change = np.abs(np.asarray(pictures[0]["image"], dtype=float) - original).mean()
    return len(held) if held else (there / "a.jpg").stat().st_size, round(float(change), 1)


folder = datasets.load_dataset("imagefolder", data_dir=str(there), split="train", cache_dir=sys.argv[1] + "/cache")
folder.save_to_disk(sys.argv[1] + "/saved")
held = datasets.load_from_disk(sys.argv[1] + "/saved")
thrice = held
for name in ("caption", "score", "tag"):
    thrice = thrice.map(lambda example, name=name: {name: example["image"].width})
seen = {
    "as it was saved": state(held),
    "filter by the width": state(held.filter(lambda example: example["image"].width > 3)),
    "folder of files, map to the width": state(folder.map(width)),
    "map to the width": state(held.map(width)),
    "three maps that add a column": state(thrice),
}
print(f"datasets {version('datasets')}, pillow {version('pillow')}: a JPEG of quality 98")
for way, (size, change) in seen.items():
    print(f"{way}: {size} bytes, pixels changed by {change} of 255")
*unchanged, once, three = seen.values()
as_stated = len(set(unchanged)) == 1 and once[0] < unchanged[0][0] / 2 and once[1] > 2 and three[1] > once[1]
sys.exit(0 if as_stated else "This is no longer so.")
END
