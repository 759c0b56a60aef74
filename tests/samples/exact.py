"""Models whose every bit is made by arithmetic on whole numbers: the same on every processor, with every torch.

A snapshot goes on over the very base that it was taken on only, so a sample of one needs a base that can be made again.
"""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import nn

_BITS = 20


def exact_tensor(name: str, shape: Iterable[int]) -> torch.Tensor:
    """Evenly spread numbers, fp32 of this shape, others for every name: of size 1 / √(inputs of an output) for weights;
    near 1 for the scales of norms and near 0 for biases."""
    shape = tuple(shape)
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little")
    number = torch.arange(torch.Size(shape).numel(), dtype=torch.int64) * 2654435761 + seed
    for _ in range(2):
        number = number % 2**32
        number = (number ^ (number >> 16)) * 0x45D9F3B
    spread = ((number % 2**32 >> (32 - _BITS)) - 2 ** (_BITS - 1)).float() / 2 ** (_BITS - 1)
    if len(shape) > 1:
        fan_in = torch.Size(shape[1:]).numel()
        return (spread * 2.0 ** -((fan_in - 1).bit_length() // 2)).view(shape)
    return (spread / 64 + float(name.endswith("weight"))).view(shape)


def exact_weights(shapes: Mapping[str, Iterable[int]]) -> dict[str, torch.Tensor]:
    """Weights by name, for these shapes."""
    return {name: exact_tensor(name, shape) for name, shape in shapes.items()}


def made_exact(module: nn.Module) -> nn.Module:
    """The module, with such numbers in place of all its parameters."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(exact_tensor(name, parameter.shape))
    return module


def exact_pipeline(pipeline):
    """A diffusers pipeline, with such numbers in place of all parameters of its models."""
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            made_exact(part)
    return pipeline


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of all names, dtypes, shapes and bits."""
    result = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        result.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return result.hexdigest()
