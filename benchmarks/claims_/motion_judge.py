"""Which motion a clip has, by arithmetic: the track of the centroid of what is not white, beside the ways that there
are."""

from collections.abc import Sequence

import numpy as np
import torch

from . import motion_clips

FAINTEST = 0.15  # of the distance from white to black: less is no ink
LEAST_INK = 1.0  # pixels' worth in a frame
FARTHEST = 1.5  # pixels, root mean square: beyond it a track is none of the ways


def tracks(frames: torch.Tensor) -> np.ndarray:
    """Centroids in pixels, float [n, FRAMES, 2] of x and y, of clips float [n, FRAMES, h, w, 3] in 0..1; NaN where a
    frame is as good as empty."""
    ink = (1 - frames.float()).mean(-1)
    ink = torch.where(ink < FAINTEST, 0, ink).double()
    total = ink.sum((2, 3))
    x = (ink.sum(2) * torch.arange(ink.shape[3])).sum(-1) / total
    y = (ink.sum(3) * torch.arange(ink.shape[2])).sum(-1) / total
    found = torch.stack([x, y], -1)
    found[total < LEAST_INK] = float("nan")
    return found.numpy()


def motions(frames: torch.Tensor) -> list[str]:
    """The motion of each clip, a key of motion_clips.WAYS or "none": the way whose shape is nearest to the track's,
    wherever in the picture that is."""
    return [_motion(track) for track in tracks(frames)]


def _motion(track: np.ndarray) -> str:
    if np.isnan(track).any():
        return "none"
    distances = {name: _distance(track, motion_clips.way(name)) for name in motion_clips.WAYS}
    nearest = min(distances, key=distances.get)
    return nearest if distances[nearest] <= FARTHEST else "none"


def _distance(track: np.ndarray, way: np.ndarray) -> float:
    apart = (track - track.mean(0)) - (way - way.mean(0))
    return float(np.sqrt(np.square(apart).sum(1).mean()))


def share(frames: torch.Tensor, motion: str | Sequence[str]) -> float:
    """Of clips the share that has the motion asked for, one for all or one for each."""
    found = motions(frames)
    asked = [motion] * len(found) if isinstance(motion, str) else motion
    return float(np.mean([one == other for one, other in zip(found, asked, strict=True)]))


def off(frames: torch.Tensor, motion: str) -> float:
    """Mean distance in pixels between the clips' tracks and a motion's way, wherever it is; SIZE without a track."""
    way = motion_clips.way(motion)
    return float(np.mean([np.nan_to_num(_distance(one, way), nan=motion_clips.SIZE) for one in tracks(frames)]))


def named(frames: torch.Tensor, icons: dict[str, np.ndarray], asked: Sequence[str], among: int = 10) -> float:
    """Of clips the share whose thing is nearer to its own icon than to `among` − 1 others: chance is 1 / among.

    icons: name → uint8 [ICON, ICON, 3]; asked: the name of each clip
    """
    names = list(icons)
    random, right = np.random.RandomState(0), []
    for thing, name in zip(_things(frames), asked, strict=True):
        others = [names[row] for row in random.permutation(len(names)) if names[row] != name][: among - 1]
        distances = [np.abs(thing - icons[one] / 255.0).mean() for one in (name, *others)]
        right.append(int(np.argmin(distances)) == 0)
    return float(np.mean(right))


def _things(frames: torch.Tensor) -> list[np.ndarray]:
    """What moves, cut out around the middle of its box and averaged over the frames: float [ICON, ICON, 3] each."""
    size = motion_clips.ICON
    cut = []
    for clip in frames.numpy():
        parts = []
        for frame in clip:
            rows, columns = np.nonzero(1 - frame.mean(-1) >= FAINTEST)
            if not len(rows):
                parts.append(np.ones((size, size, 3), frame.dtype))
                continue
            y, x = (int(round((ends.min() + ends.max() + 1 - size) / 2)) for ends in (rows, columns))
            wide = np.pad(frame, ((size, size), (size, size), (0, 0)), constant_values=1)
            parts.append(wide[y + size : y + 2 * size, x + size : x + 2 * size])
        cut.append(np.mean(parts, axis=0))
    return cut
