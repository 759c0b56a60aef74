"""GLoRA (arXiv 2306.07967) as LyCORIS keeps it: W' = W + (W · A + B) · α / r, with A and B of low rank.

There are two layouts. In the present one A = a1 · a2 and B = b1 · b2 (of a convolution also with a Tucker core bm
between them), in the early one A = a2 · a1 and B = b2 · b1.
Shapes that do not fit raise an error of PyTorch or IndexError.
"""

from collections.abc import Mapping

import torch

from .alpha import Alpha, bounded


def glora(t: Mapping[str, torch.Tensor], alpha: Alpha, weight: torch.Tensor) -> torch.Tensor:
    """W' − W. t: a1, a2, b1, b2 and perhaps bm, matrices or convolutions; weight: float32 [rows, columns, …]"""
    a1, a2, b1, b2 = (t[part].flatten(1) for part in ("a1", "a2", "b1", "b2"))
    if "bm" not in t and _is_early(a1, a2, b1, b2, weight):
        rank = bounded(a1.shape[0])
        change = b2 @ b1 + weight.flatten(1) @ a2 @ a1
    else:
        rank = bounded(a2.shape[0])
        # Of a convolution, A mixes the input channels of every place of the kernel alike.
        channels_last = weight.movedim(1, -1)
        bounded(b1.shape[1])
        b = torch.einsum("mn...,im,nj->ij...", t["bm"], b1, b2) if "bm" in t else b1 @ b2
        change = b.reshape(weight.shape) + (channels_last @ a1 @ a2).movedim(-1, 1)
    return change.reshape(weight.shape) * alpha.scale(rank)


def _is_early(a1: torch.Tensor, a2: torch.Tensor, b1: torch.Tensor, b2: torch.Tensor, weight: torch.Tensor) -> bool:
    early = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
    present = b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]
    # Where the rank is as large as the weight is wide, both fit.
    return early and (not present or a2.shape[0] == weight.shape[0] == weight.shape[1])
