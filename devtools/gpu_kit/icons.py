"""The pictures of icon sets as benchmarks/claims_/render.py keeps them, packed: a sheet without loss for each set, and
its names. So that machine needs neither npm nor a program that renders SVG.

    python -m devtools.gpu_kit.icons FOLDER TARGET      there: unpacks all of FOLDER into TARGET
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

COLUMNS = 64


def pack(kept: Path, target: Path) -> None:
    """Pack one set's file, names and pixels uint8 [n, size, size, 3], as two files in the folder `target`."""
    with np.load(kept) as content:
        names, pixels = content["names"].tolist(), content["pixels"]
    count, size = pixels.shape[:2]
    rows = -(-count // COLUMNS)
    tiles = np.full((rows * COLUMNS, size, size, 3), 255, np.uint8)
    tiles[:count] = pixels
    sheet = tiles.reshape(rows, COLUMNS, size, size, 3).transpose(0, 2, 1, 3, 4).reshape(rows * size, -1, 3)
    target.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(target / f"{kept.stem}.webp", lossless=True, quality=70, method=4)
    (target / f"{kept.stem}.json").write_text(json.dumps(names), encoding="utf-8")


def unpack(folder: Path, target: Path) -> None:
    """Write the files again that `pack` was given, for every set in a folder."""
    target.mkdir(parents=True, exist_ok=True)
    for sheet in sorted(folder.glob("*.webp")):
        names = json.loads(sheet.with_suffix(".json").read_text(encoding="utf-8"))
        pixels = np.asarray(Image.open(sheet).convert("RGB"))
        size = pixels.shape[1] // COLUMNS
        tiles = pixels.reshape(-1, size, COLUMNS, size, 3).transpose(0, 2, 1, 3, 4).reshape(-1, size, size, 3)
        np.savez(target / f"{sheet.stem}.npz", names=np.array(names), pixels=tiles[: len(names)])


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
