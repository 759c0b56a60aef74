"""IA³ (arXiv 2205.05638): a factor for each output or input channel of a weight.

LyCORIS keeps s of W' = W · (1 + s): a module has `weight`, the factors, and `on_input`, which of the two they are for.
PEFT keeps l of W' = W · l in `ia3_l`, whose shape tells which.
Shapes that do not fit raise IndexError.
"""

import torch


def of_channels(factors: torch.Tensor, dim: int, weight: torch.Tensor) -> torch.Tensor:
    """W' − W. factors: one for each channel along `dim` (0 = output, 1 = input) of weight, float32 [out, in, …]"""
    if factors.numel() != weight.shape[dim]:
        raise IndexError(factors.shape)
    shape = [-1 if axis == dim else 1 for axis in range(weight.dim())]
    return weight * factors.reshape(shape)


def of_either(factors: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """W' − W of PEFT's l. factors: of outputs [out, 1] or inputs [1, in]; of a convolution [1, channels, 1, …]"""
    return of_channels(factors - 1, 0 if are_of_outputs(factors.shape, weight.shape) else 1, weight)


def are_of_outputs(factors: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether PEFT's l, of this shape, is of the outputs of a weight of that shape; for a bias it always is.

    Raises IndexError where the shapes do not tell.
    """
    if len(weight) == 2:
        return factors[-1:] == (1,)
    if len(weight) > 2 and weight[0] == weight[1]:
        raise IndexError(factors)
    return len(weight) < 2 or factors[1:2] == weight[:1]
