"""Progressive parameter adjustment (section 3.3 of the SaRA paper): part of the way through a run, the trained
elements that are still below the threshold θ are selected again, and only those go on; the others keep their values.
"""

from typing import NamedTuple

import torch

from ..backward.store import Store


class Adjustment(NamedTuple):
    """trained: elements that trained before; ineffective: those of them below θ, which go on
    moments_kept: whether the optimizer's moments went on; those kept in blocks (8-bit optimizers) start anew
    """

    trained: int
    ineffective: int
    moments_kept: bool


def adjust(store: Store, optimizer: torch.optim.Optimizer, theta: float) -> Adjustment:
    """Go on with the elements whose |base + Δ| is below `theta`; if there is none, with all as before.

    To be called between steps. The optimizer sees the same Parameter, shorter. What stays goes on as if nothing had
    happened, up to its last bits where the optimizer is fused (make_inner), and but for an optimizer that measures the
    whole vector (Adafactor), which then measures what is left.
    """
    numbers = range(len(store.support))
    over = torch.cat([store.trained_values(number).abs() >= theta for number in numbers])
    trained, ineffective = len(over), len(over) - int(over.sum())
    moments_kept = True
    if 0 < ineffective < trained:
        moments_kept = _shorten_moments(optimizer, store.values, ~over)
        store.freeze(over)
    return Adjustment(trained, ineffective, moments_kept)


def _shorten_moments(optimizer, values, keep) -> bool:
    state = optimizer.state[values]
    vectors = {name: kept for name, kept in state.items() if torch.is_tensor(kept) and kept.dim() > 0}
    can_be_shortened = all(
        type(kept) is torch.Tensor and kept.is_floating_point() and kept.shape == values.shape
        for kept in vectors.values()
    )
    if can_be_shortened:
        state.update((name, kept[keep]) for name, kept in vectors.items())
    else:
        del optimizer.state[values]
    return can_be_shortened
