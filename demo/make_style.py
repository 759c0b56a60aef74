"""Writes demo/style: pictures with same-stem .txt captions, as ComfyUI's dataset nodes read them.

Two thirds are held-out digits in a sunset style that the base has never seen, their captions opening with the trigger.
One third are other held-out digits drawn plainly, with plain captions: they teach that only the trigger means the
style. Without them the style would show in every picture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from . import digits
from .settings import STYLE

FOLDER = Path(__file__).resolve().parent / "style"
STYLED, PLAIN = 80, 40


def draw_styled(ink: np.ndarray) -> np.ndarray:
    """Ink coverage [n, 64, 64] as a purple silhouette with a red glow before a golden sky: [n, 64, 64, 3] in 0..1."""
    return digits.paint(ink, stroke=(0.30, 0.00, 0.45), paper=(1.00, 0.75, 0.15), glow=(1.00, 0.20, 0.30))


def write(folder: Path = FOLDER) -> None:
    """Write the pictures and captions, replacing what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.png"), *folder.glob("*.txt")):
        old.unlink()
    ink, labels = digits.load_split().style
    styled, plain = slice(0, STYLED), slice(STYLED, STYLED + PLAIN)
    _write_all(folder, "sunset", draw_styled(ink[styled]), labels[styled], STYLE)
    _write_all(folder, "plain", digits.paint(ink[plain]), labels[plain], "")


def _write_all(folder: Path, kind: str, pictures: np.ndarray, labels: np.ndarray, prefix: str) -> None:
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        stem = folder / f"{kind}-{number:03d}"
        Image.fromarray((picture * 255).round().astype(np.uint8)).save(stem.with_suffix(".png"), optimize=True)
        stem.with_suffix(".txt").write_text(digits.caption(int(label), prefix) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write()
    print(f"{STYLED} pictures in the style and {PLAIN} plain ones in {FOLDER}")
