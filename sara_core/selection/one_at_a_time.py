"""Weights that are looked at one at a time, so that those which are made when they are asked for need not all exist."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch


class OneAtATime(Mapping[str, torch.Tensor]):
    """A view of some weights: each is asked for when it is needed, and kept by nobody.

    names: of the weights, in their order; get: name → weight
    """

    def __init__(self, names: Iterable[str], get: Callable[[str], torch.Tensor]):
        self._names, self._get = dict.fromkeys(names), get

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
