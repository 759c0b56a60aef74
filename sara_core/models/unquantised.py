"""A safetensors file of a model, its quantised weights dequantised as they are read."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from safetensors import safe_open

from ..errors import UnsupportedModelError
from ..files import container
from .quantised.file import Found, QuantisedFile
from .rewriting import Dequantised

# What people call them; other formats by the name that descriptions have.
_NAMES = {"F8_E4M3": "fp8 e4m3", "F8_E5M2": "fp8 e5m2", "int8_tensorwise": "int8", "convrot_w4a4": "convrot w4a4"}


class _Shape(NamedTuple):
    shape: tuple[int, ...]

    def get_shape(self) -> list[int]:
        return list(self.shape)


class UnquantisedFile:
    """As the file that `container.opened` gives, without its quantisation: weights that it has quantised are float32 of
    their own shape, and what belongs to the quantisation is not there. A weight that is quantised in a way that is not
    known has the shape of its bytes, and cannot be read.

    precisions: name of a quantised weight → what people call its precision
    """

    def __init__(self, file: safe_open, checkpoint: QuantisedFile):
        self._file, self._checkpoint = file, checkpoint
        self._found: dict[str, Found] = {}
        self._unknown: dict[str, UnsupportedModelError] = {}
        dequantised = Dequantised(checkpoint)
        for name in checkpoint.header:
            try:
                if (found := dequantised.found(name)) is not None:
                    self._found[name] = found
            except UnsupportedModelError as error:
                self._unknown[name] = error
        beside = {place for found in self._found.values() for place in found.beside.values()}
        shapes = checkpoint.shapes
        self._shapes = {name: shapes[name] for name in checkpoint.header if name not in beside}
        self.precisions = {
            name: _precision(checkpoint.header[name]["dtype"], found) for name, found in self._found.items()
        }

    @property
    def has_quantised(self) -> bool:
        """Whether any weight is quantised."""
        return bool(self._found or self._unknown)

    def keys(self) -> list[str]:
        """The names of all tensors."""
        return list(self._shapes)

    def metadata(self) -> Mapping[str, str]:
        """Text → text."""
        return self._file.metadata() or {}

    def get_slice(self, name: str) -> _Shape:
        """What knows a tensor's shape, without reading it."""
        return _Shape(self._shapes[name])

    def get_tensor(self, name: str) -> torch.Tensor:
        """A tensor: a new one where it was quantised, else a view of the mapped file. Raises UnsupportedModelError, by
        name, for a weight that is quantised in a way that is not known."""
        if name in self._unknown:
            raise self._unknown[name]
        if name not in self._found:
            return self._file.get_tensor(name)
        found = self._found[name]
        return found.format.dequantised(self._checkpoint.layer(name, found))


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[safe_open | UnquantisedFile]:
    """As `container.opened`; an UnquantisedFile, if it has quantised weights. Raises UnsupportedModelError too, for
    files that another engine has packed."""
    with container.opened(path) as file, open(path, "rb") as content:
        without = UnquantisedFile(file, QuantisedFile(content, os.path.basename(path)))
        yield without if without.has_quantised else file


def _precision(dtype: str, found: Found) -> str:
    if dtype in _NAMES:
        return f"{_NAMES[dtype]} with a scale" if found.format.scales else _NAMES[dtype]
    return _NAMES.get(found.format.name, found.format.name)
