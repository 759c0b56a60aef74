"""How the learning rate goes during a run: a factor for every step, from nothing but the step's number."""

import math
from bisect import bisect_right
from collections.abc import Sequence

SCHEDULES = ("constant", "cosine", "linear")


def rate_factor(schedule: str, step: int, steps: int, warmup: int = 0) -> float:
    """What the learning rate is multiplied by at `step` (from 0) of `steps`: 0 … 1.

    It rises linearly over the first `warmup` steps; after them it stays at 1 (constant), falls along half a cosine, or
    falls linearly, towards 0 at the end of the run. A function of the step alone, so that a resumed run goes on
    exactly.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1 - progress
    return 1.0


def planned_rate_factor(schedule: str, step: int, ends: Sequence[int], warmup: int = 0) -> float:
    """The same for a run that may have been trained on: a cosine or a line begins anew where the run was first to end,
    without a warmup, and falls until the next end.

    ends: rising, of the run as first planned and of each part that was added
    """
    part = bisect_right(ends, step)
    if part == 0:
        return rate_factor(schedule, step, ends[0], warmup)
    return rate_factor(schedule, step - ends[part - 1], ends[part] - ends[part - 1])
