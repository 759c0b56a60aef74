"""Plain classifiers that judge samples: which digit it is, and whether it is in the style.

Both are fitted on real digits when first asked (a few seconds). Pictures are float arrays [n, 64, 64, 3] in 0..1.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from . import digits
from .make_style import draw_styled


def judge_digits(pictures: np.ndarray) -> np.ndarray:
    """The digit seen in each picture, int64 [n], whatever its colours."""
    return _digit_judge().predict(_shapes(pictures))


def judge_styled(pictures: np.ndarray) -> np.ndarray:
    """Whether each picture is in the style, bool [n]."""
    return _style_judge().predict(_colours(pictures)).astype(bool)


@cache
def _digit_judge() -> SVC:
    base = digits.load_split().base
    looks = [digits.paint(base.ink), draw_styled(base.ink)]
    features = np.concatenate([_shapes(look) for look in looks])
    return SVC(C=10).fit(features, np.tile(base.labels, len(looks)))


@cache
def _style_judge() -> LogisticRegression:
    ink = digits.load_split().base.ink
    plain, styled = _colours(digits.paint(ink)), _colours(draw_styled(ink))
    is_styled = np.repeat([False, True], len(ink))
    return LogisticRegression(max_iter=1000).fit(np.concatenate([plain, styled]), is_styled)


def _shapes(pictures: np.ndarray) -> np.ndarray:
    """How far each spot's colour is from the paper's, in the picture's own range, on a 16×16 grid: [n, 256]."""
    edges = np.concatenate([pictures[:, :2], pictures[:, -2:]], axis=1)
    paper = np.median(edges, axis=(1, 2))[:, None, None]
    distance = _blocks(np.linalg.norm(pictures - paper, axis=-1)[..., None], 16)
    return distance / np.maximum(distance.max(axis=1, keepdims=True), 1e-6)


def _colours(pictures: np.ndarray) -> np.ndarray:
    """Mean colours on an 8×8 grid: [n, 192]."""
    return _blocks(pictures, 8)


def _blocks(pictures: np.ndarray, grid: int) -> np.ndarray:
    """Means over a grid of equal blocks: [n, h, w, c] → [n, grid·grid·c]."""
    count, height, width, channels = pictures.shape
    blocks = pictures.reshape(count, grid, height // grid, grid, width // grid, channels)
    return blocks.mean(axis=(2, 4)).reshape(count, -1)
