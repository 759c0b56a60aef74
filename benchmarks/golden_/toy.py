"""A small model with every kind of layer that is trained, and what it is trained on. All of it from seeds."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn


class Toy(nn.Module):
    """[n, 3, 8, 8] → [n, 5]: convolutions with strides, groups and one dimension, Linear layers, norms, a tied weight
    and an embedding."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.GroupNorm(3, 12)
        self.groups = nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=3)
        self.row = nn.Conv1d(12, 12, 3, padding=1)
        self.place = nn.Embedding(16, 12)
        self.wide = nn.Linear(12, 24)
        self.narrow = nn.Linear(24, 12, bias=False)
        self.again = nn.Linear(12, 24)
        self.again.weight = self.wide.weight
        self.last = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.groups(F.silu(self.norm(self.first(x))))
        h = self.row(h.flatten(2)).transpose(1, 2) + self.place.weight
        h = h + self.narrow(F.gelu(self.wide(h)))
        h = h + self.narrow(F.gelu(self.again(h)))
        return self.last(h.mean(1))


def toy(seed: int = 0, dtype: torch.dtype = torch.float32) -> Toy:
    torch.manual_seed(seed)
    return Toy().to(dtype)


def batches(count: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Iterator[tuple]:
    """Pairs of input [4, 3, 8, 8] and target [4, 5]."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        pair = torch.randn(4, 3, 8, 8, generator=generator), torch.randn(4, 5, generator=generator)
        yield tuple(tensor.to(dtype) for tensor in pair)


def loss_of(model: Toy, batch: tuple) -> torch.Tensor:
    return F.mse_loss(model(batch[0]).float(), batch[1].float())
