"""Files written by torch.save, read as data only: without running anything, and without taking more memory than they
have bytes. Two foreign formats are such files; nothing of ours ever is."""

import contextlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import DeltaError

_ZIP = b"PK\x03\x04"


def is_torch_file(path: str | os.PathLike) -> bool:
    """Whether the file begins as torch.save's files do since torch 1.6."""
    with open(path, "rb") as file:
        return file.read(len(_ZIP)) == _ZIP


def load(path: str | os.PathLike) -> Any:
    """The file's content: containers, numbers, texts and tensors on the CPU, which stay in the mapped file.

    Raises DeltaError for a damaged file, or one that holds anything else.
    """
    path = Path(path)
    try:
        _check_members(path)
        with _only_allowed([_Dtype, *_SCALARS]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except DeltaError:
        raise
    except Exception as error:  # a damaged or hostile pickle fails in any way there is
        raise DeltaError(
            f"'{path.name}' cannot be read as plain data: it is damaged, or holds program objects, which are never "
            "loaded. Get it again, saved as tensors only, from where it was made."
        ) from error


def is_plain(value: Any, dtypes: tuple[torch.dtype, ...] | None = None, dimensions: int | None = None) -> bool:
    """Whether a value read from a file is an ordinary tensor in memory (of one of these dtypes, of so many sides).

    One that repeats its elements is not: a few bytes would become as many as they claim as soon as it is copied.
    """
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
        and (dtypes is None or value.dtype in dtypes)
        and dimensions in (None, value.dim())
    )


@contextlib.contextmanager
def _only_allowed(functions: list) -> Iterator[None]:
    """Lets a file name these functions, and none of those that other libraries have allowed all files to name."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(functions)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


def _check_members(path: Path) -> None:
    """torch.save stores members as they are: a compressed or overlapping one is there to take memory."""
    members = zipfile.ZipFile(path).infolist()
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > path.stat().st_size:
        raise DeltaError(f"'{path.name}' was not written by torch.save. Get it again from where it came from.")


class _Dtype:
    """Stands in for numpy.dtype, whose own unpickling trusts the file with memory layouts."""

    def __init__(self, code: str = "", *_):
        self.code = code

    def __setstate__(self, state: tuple):
        self.is_little_endian = isinstance(state, tuple) and len(state) > 1 and state[1] == "<"


def _scalar(dtype: Any, content: Any = b"") -> int:
    """Stands in for the constructor of numpy's scalars: LT-SFT writes the first position of each weight as one."""
    whole = isinstance(dtype, _Dtype) and dtype.code in ("i4", "i8") and getattr(dtype, "is_little_endian", False)
    if not whole or not isinstance(content, bytes) or len(content) != int(dtype.code[1]):
        raise ValueError("a number that is not a little-endian integer of 32 or 64 bits")
    return int.from_bytes(content, "little", signed=True)


def _named(stand_in: Any, module: str, name: str) -> Any:
    """torch finds what a file may name by module and name."""
    stand_in.__module__, stand_in.__name__, stand_in.__qualname__ = module, name, name
    return stand_in


def _scalar_of(module: str) -> Any:
    return _named(lambda *arguments: _scalar(*arguments), module, "scalar")


_named(_Dtype, "numpy", "dtype")
_SCALARS = [_scalar_of("numpy.core.multiarray"), _scalar_of("numpy._core.multiarray")]
