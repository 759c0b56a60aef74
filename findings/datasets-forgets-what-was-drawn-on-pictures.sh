#!/bin/sh
# datasets 5.2.0: a picture that was changed in place is stored as the file it was opened from.
#
# Expected: what `map` returns, and what `from_dict` is given, is what the data set holds: a PIL image's pixels.
# Instead: an image that still knows its file (`Image.open(path)`, the pictures of an "imagefolder") is stored as that
# path. What was done to it in place, `thumbnail`, `paste`, `putalpha`, all of ImageDraw, is not looked at; methods that
# return a new image (`resize`, `copy`) lose the file's name and so are kept. Of pictures that a data set holds as bytes
# (a set from the Hub, or after `save_to_disk`) the same function's changes are kept.
# Why it matters: a watermark, a face or a text that was painted over is in the training set after all, and a set that
# was shrunk is of the full size. The same script is right on a set from the Hub and wrong on a folder.
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
from PIL import Image, ImageDraw

datasets.disable_progress_bars()
datasets.logging.set_verbosity_error()
there = Path(sys.argv[1], "pictures")
there.mkdir()
Image.new("RGB", (64, 64), "white").save(there / "one.png")


def cover(example):
    ImageDraw.Draw(example["image"]).rectangle((0, 0, 63, 31), fill="black")
    return example


def cover_a_copy(example):
    return cover({"image": example["image"].copy()})


def is_covered(pictures):
    return pictures[0]["image"].convert("RGB").getpixel((5, 5)) == (0, 0, 0)


folder = datasets.load_dataset("imagefolder", data_dir=str(there), split="train", cache_dir=sys.argv[1] + "/cache")
folder.save_to_disk(sys.argv[1] + "/saved")
as_bytes = datasets.load_from_disk(sys.argv[1] + "/saved")
image = cover({"image": Image.open(there / "one.png")})["image"]
given = datasets.Dataset.from_dict({"image": [image]}, datasets.Features({"image": datasets.Image()}))
seen = {
    "folder of pictures, painted on": is_covered(folder.map(cover)),
    "opened picture, painted on, then from_dict": is_covered(given),
    "folder of pictures, a copy painted on": is_covered(folder.map(cover_a_copy)),
    "the same set saved and loaded, painted on": is_covered(as_bytes.map(cover)),
}
print(f"datasets {version('datasets')}, pillow {version('pillow')}: is what was painted in the data set?")
for way, covered in seen.items():
    print(f"{way}: {covered}")
sys.exit(0 if list(seen.values()) == [False, False, True, True] else "This is no longer so.")
END
