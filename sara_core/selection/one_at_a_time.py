"""Weights that are looked at one at a time, so that those which are made when they are asked for need not all exist."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from ..tensors.elements import overlaps_itself


@dataclass(frozen=True)
class Outline:
    """What is known of a weight without its content.

    overlaps: whether several elements may lie at one place in its memory
    """

    shape: torch.Size
    device: torch.device
    overlaps: bool

    @classmethod
    def of(cls, weight: torch.Tensor) -> "Outline":
        """A weight's own."""
        return cls(weight.shape, weight.device, overlaps_itself(weight))

    def dim(self) -> int:
        """Number of dimensions, as of a tensor."""
        return len(self.shape)

    def numel(self) -> int:
        """Number of elements, as of a tensor."""
        return self.shape.numel()


class OneAtATime(Mapping[str, torch.Tensor]):
    """A view of some weights: each is asked for when it is needed, and kept by nobody.

    names: of the weights, in their order; get: name → weight
    """

    def __init__(self, names: Iterable[str], get: Callable[[str], torch.Tensor]):
        self._names, self._get = dict.fromkeys(names), get
        self._outlines: dict[str, Outline] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        weight = self._get(name)
        if name not in self._outlines:
            self._outlines[name] = Outline.of(weight)
        return weight

    def outline(self, name: str) -> Outline:
        """A weight's outline; it is asked for only if it never was before."""
        if name not in self._outlines:
            self[name]
        return self._outlines[name]

    def only(self, names: Iterable[str]) -> "OneAtATime":
        """Some of them, in the order of `names`."""
        part = OneAtATime(names, self._get)
        part._outlines = self._outlines
        return part

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def one_at_a_time(weights: Mapping[str, torch.Tensor]) -> OneAtATime:
    """The weights of a mapping, itself if it is a view already."""
    return weights if isinstance(weights, OneAtATime) else OneAtATime(weights, weights.__getitem__)


def outlines(weights: Mapping[str, torch.Tensor]) -> dict[str, Outline]:
    """Name → outline of every weight, in their order."""
    weights = one_at_a_time(weights)
    return {name: weights.outline(name) for name in weights}
