"""DoRA (arXiv 2402.09353): W' = m · (W + Δ) / ‖W + Δ‖, a magnitude for each row or column and a direction.

The norm is over all elements of a row (an output channel) or of a column (an input channel); PEFT has rows only.
Shapes that do not fit raise IndexError, as everywhere in change.py.
"""

import torch

_EPS = torch.finfo(torch.float32).eps


def scaled(change: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """W' − W by the magnitudes of a `dora_scale`.

    change, weight: Δ and W, float32 [rows, columns, …]; scale: [rows, 1, …] or [1, columns, …]
    """
    tuned = weight + change
    return tuned * (scale / (_norm(tuned, _kept(scale, weight)) + _EPS)) - weight


def scaled_by_the_base(change: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """As `scaled`, but by rows with the norm of W, without Δ: nobody trains so, and some programs show it so."""
    kept = _kept(scale, weight)
    tuned = weight + change
    return tuned * (scale / (_norm(tuned if kept else weight, kept) + _EPS)) - weight


def of_magnitude(change: torch.Tensor, weight: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """W' − W by PEFT's magnitudes: [rows] of a Linear layer, [1, rows, 1, …] of a convolution.

    change, weight: Δ and W, float32 [rows, columns, …]
    """
    if magnitude.numel() != weight.shape[0]:
        raise IndexError(magnitude.shape)
    tuned = weight + change
    norm = _norm(tuned, 0)
    return tuned * (magnitude.reshape(norm.shape) / norm) - weight


def _kept(scale: torch.Tensor, weight: torch.Tensor) -> int:
    """The side of the weight that has a magnitude for each place: 0, its rows, or 1, its columns."""
    ones = (1,) * (weight.dim() - 2)
    rows, columns = weight.shape[:2]
    if scale.shape == (rows, 1, *ones):
        return 0
    if scale.shape == (1, columns, *ones):
        return 1
    raise IndexError(scale.shape)


def _norm(weight: torch.Tensor, kept: int) -> torch.Tensor:
    """Summed up in float64: in float32 the squares overflow first, and dividing by infinity would hide that."""
    others = [dim for dim in range(weight.dim()) if dim != kept]
    return torch.linalg.vector_norm(weight, dim=others, keepdim=True, dtype=torch.float64).to(weight.dtype)
