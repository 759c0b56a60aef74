"""How the learning rate goes during a run: a factor for every step, from nothing but the step's number."""

import math

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
