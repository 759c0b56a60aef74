"""Writes demo/style: pictures with same-stem .txt captions, as ComfyUI's dataset nodes read them.

Two thirds are held-out digits in a neon style that the base has never seen, their captions opening with the trigger.
One third are other held-out digits drawn plainly, with plain captions: they teach that only the trigger means the
style. Without them the style would show in every picture.
"""

from __future__ import annotations

from pathlib import Path

import digits
import numpy as np
from PIL import Image
from settings import STYLE

FOLDER = Path(__file__).resolve().parent / "style"


def draw_styled(ink: np.ndarray) -> np.ndarray:
    """Ink coverage [n, 64, 64] as glowing tubes at night: [n, 64, 64, 3] in 0..1."""
    # Thinner strokes, so that the glow does not fill the loops of an 8.
    return digits.paint(ink**2, stroke=(0.70, 1.00, 0.95), paper=(0.06, 0.05, 0.22), glow=(0.95, 0.10, 0.60))
