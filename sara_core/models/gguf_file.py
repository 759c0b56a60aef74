"""A GGUF file as a checkpoint that can be written without its quantisation.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the `gguf` package reads and dequantises.
"""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import DeltaError, UnsupportedModelError
from ..foreign_text import NAME, plain
from .quantised.elements import DTYPES
from .quantised.formats import Shape
from .rewriting import Unquantised

ENDING = ".gguf"
# Shapes that converters had to change, because the format has no weights of more than four sides or packs rows alone.
_SHAPE = "comfy.gguf.orig_shape."
_AS_THEY_ARE = {"F64", "F32", "F16", "BF16"}
_WHOLE_NUMBERS = {"I8", "I16", "I32", "I64"}
_DAMAGE = (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError, struct.error)


class GgufFile:
    """The tensors of a GGUF file, read one by one. Raises DeltaError if it is missing or damaged, or no library to read
    it is there."""

    metadata: dict[str, str] = {}

    def __init__(self, path: Path):
        if not path.is_file():
            raise DeltaError(f"The file '{path}' does not exist. Choose another one, or put it there again.")
        self._gguf, self.label = _library(path.name), path.name
        with self._in_words():
            self._reader = self._gguf.GGUFReader(path)
            self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
            self.shapes = {name: self._shape(name) for name in self._tensors}

    def unquantised(self, dtype: str) -> Iterator[Unquantised]:
        """Weights that are not quantised keep their dtype. Raises UnsupportedModelError, by name, for a kind of
        quantisation that the library cannot read."""
        for name, tensor in self._tensors.items():
            kind = tensor.tensor_type.name
            as_it_is = kind in _AS_THEY_ARE | _WHOLE_NUMBERS
            if not as_it_is and not _readable(self._gguf, tensor.tensor_type):
                raise UnsupportedModelError(
                    f"The weight '{plain(name, NAME)}' of '{self.label}' is stored as {kind}, which the installed gguf "
                    "cannot read. Update it (pip install -U gguf), or use another version of the model."
                )
            shape = self.shapes[name]
            size = int(tensor.n_bytes) if as_it_is else torch.Size(shape).numel() * DTYPES[dtype].itemsize
            yield Unquantised(name, kind if as_it_is else dtype, shape, size, lambda tensor=tensor: self._read(tensor))

    def _read(self, tensor) -> torch.Tensor:
        kind = tensor.tensor_type.name
        with self._in_words():
            if kind in _AS_THEY_ARE | _WHOLE_NUMBERS:
                content = torch.from_numpy(tensor.data.view("u1").reshape(-1).copy())
                return content.view(DTYPES[kind]) if kind in _AS_THEY_ARE else content
            values = self._gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            return torch.from_numpy(values).reshape(self.shapes[tensor.name])

    def _shape(self, name: str) -> Shape:
        field = self._reader.get_field(_SHAPE + name)
        stored = tuple(int(size) for size in reversed(self._tensors[name].shape))
        if field is None:
            return stored
        shape = tuple(int(field.parts[place][0]) for place in field.data)
        if torch.Size(shape).numel() != torch.Size(stored).numel():
            raise ValueError(f"{name} has another size")
        return shape

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except _DAMAGE as error:
            raise DeltaError(f"'{self.label}' is not a complete GGUF file. Download it again.") from error
        except OSError as error:
            raise DeltaError(f"'{self.label}' cannot be read ({error.strerror or error}).") from error


def _library(label: str):
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise DeltaError(
            f"'{label}' is a GGUF file, which the package gguf reads: install it (pip install gguf), or bake into a "
            ".safetensors version of the model."
        ) from error
    return gguf


def _readable(gguf, kind) -> bool:
    """Whether the library dequantises this kind: tried on no rows."""
    import numpy

    try:
        gguf.quants.dequantize(numpy.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), dtype=numpy.uint8), kind)
    except (NotImplementedError, KeyError):
        return False
    return True
