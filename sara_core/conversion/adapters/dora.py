"""DoRA (arXiv 2402.09353): W' = m · (W + Δ) / ‖W + Δ‖, a magnitude for each row or column and a direction.

The norm is over all elements of a row (an output channel) or of a column (an input channel). PEFT divides by the norm
of W + Δ, as the paper does. A `dora_scale` divides by the norm of W, without Δ, where it has one number for each row,
and by that of W + Δ where it has one for each column: so ComfyUI applies it, and so it is read here.
Shapes that do not fit raise IndexError, as everywhere in change.py.
"""

import torch


def scaled(change: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """W' − W by the magnitudes of a `dora_scale`.

    change, weight: Δ and W, float32 [rows, columns, …]; scale: [rows, 1, …] or [1, columns, …]
    """
    ones = (1,) * (weight.dim() - 2)
    rows, columns = weight.shape[:2]
    tuned = weight + change
    if scale.shape == (rows, 1, *ones):
        norm = _norm(weight, 0)
    elif scale.shape == (1, columns, *ones):
        norm = _norm(tuned, 1)
    else:
        raise IndexError(scale.shape)
    return tuned * (scale / (norm + torch.finfo(torch.float32).eps)) - weight


def of_magnitude(change: torch.Tensor, weight: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """W' − W by PEFT's magnitudes: [rows] of a Linear layer, [1, rows, 1, …] of a convolution.

    change, weight: Δ and W, float32 [rows, columns, …]
    """
    if magnitude.numel() != weight.shape[0]:
        raise IndexError(magnitude.shape)
    tuned = weight + change
    norm = _norm(tuned, 0)
    return tuned * (magnitude.reshape(norm.shape) / norm) - weight


def _norm(weight: torch.Tensor, kept: int) -> torch.Tensor:
    """Summed up in float64: in float32 the squares overflow first, and dividing by infinity would hide that."""
    others = [dim for dim in range(weight.dim()) if dim != kept]
    return torch.linalg.vector_norm(weight, dim=others, keepdim=True, dtype=torch.float64).to(weight.dtype)
