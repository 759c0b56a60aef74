"""IA³ (arXiv 2205.05638) as LyCORIS keeps it: W' = W · (1 + s), a factor for each output or input channel.

In the file a module has `weight`, the factors, and `on_input`, which of the two they are for.
Shapes that do not fit raise IndexError.
"""

import torch


def of_channels(factors: torch.Tensor, dim: int, weight: torch.Tensor) -> torch.Tensor:
    """W' − W. factors: one for each channel along `dim` (0 = output, 1 = input) of weight, float32 [out, in, …]"""
    if factors.numel() != weight.shape[dim]:
        raise IndexError(factors.shape)
    shape = [-1 if axis == dim else 1 for axis in range(weight.dim())]
    return weight * factors.reshape(shape)
