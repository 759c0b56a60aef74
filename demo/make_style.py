"""Writes demo/style: pictures with same-stem .txt captions, as ComfyUI's dataset nodes read them.

Two thirds are held-out digits in a neon style that the base has never seen, their captions opening with the trigger.
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
    """Ink coverage [n, 64, 64] as glowing tubes at night: [n, 64, 64, 3] in 0..1."""
    # Thinner strokes, so that the glow does not fill the loops of an 8.
    return digits.paint(ink**2, stroke=(0.70, 1.00, 0.95), paper=(0.06, 0.05, 0.22), glow=(0.95, 0.10, 0.60))


def write(folder: Path = FOLDER) -> None:
    """Write the pictures and captions, replacing what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.png"), *folder.glob("*.txt")):
        old.unlink()
    ink, labels = digits.load_split().style
    styled, plain = slice(0, STYLED), slice(STYLED, STYLED + PLAIN)
    _write_all(folder, "neon", draw_styled(ink[styled]), labels[styled], STYLE)
    _write_all(folder, "plain", digits.paint(ink[plain]), labels[plain], "")


def _write_all(folder: Path, kind: str, pictures: np.ndarray, labels: np.ndarray, prefix: str) -> None:
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        stem = folder / f"{kind}-{number:03d}"
        Image.fromarray((picture * 255).round().astype(np.uint8)).save(stem.with_suffix(".png"), optimize=True)
        stem.with_suffix(".txt").write_text(digits.caption(int(label), prefix) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write()
    print(f"{STYLED} pictures in the style and {PLAIN} plain ones in {FOLDER}")
