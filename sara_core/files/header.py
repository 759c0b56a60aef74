"""The header of a safetensors file, and nothing else of it: for lists of many files, any of which may be anything.

container.py opens a file in order to read its tensors. Here one is only looked at: opened once, never mapped, and no
more of it is read than a header may have.
"""

import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import DeltaError
from ..wording import Sentence
from . import container

# Above what the header of any model has, thumbnails in it included.
LONGEST_HEADER = 1 << 24


class Header(NamedTuple):
    """tensors: name → {"dtype": as safetensors calls it, "shape": sizes, "data_offsets": begin and end}
    metadata: text → text; begin: where in the file the tensors' bytes begin; size: of the file, in bytes"""

    tensors: dict[str, dict]
    metadata: dict[str, str]
    begin: int
    size: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape."""
        return {name: tuple(tensor["shape"]) for name, tensor in self.tensors.items()}


@contextmanager
def looked_at(path: str | os.PathLike) -> Iterator[tuple[Header, BinaryIO]]:
    """The header of the file at `path`, and the file, open as long as the block lasts.

    Raises DeltaError if it is missing, unreadable, no ordinary file, cut short, or no safetensors file of a size that
    models have.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise container.not_ordinary(path)
        with open(path, "rb") as file:
            yield _read(path.name, file), file
    except OSError as error:
        raise container.not_readable(path, error) from error


def read(path: str | os.PathLike) -> Header:
    """The header alone; raises as `looked_at`."""
    with looked_at(path) as (header, _):
        return header


def _read(label: str, file: BinaryIO) -> Header:
    size = os.fstat(file.fileno()).st_size
    damaged = DeltaError(Sentence(
        "'{name}' is not a complete .safetensors file. Download or save it again.", name=label
    ))  # fmt: skip
    try:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > min(LONGEST_HEADER, size):
            raise damaged
        file.seek(0)
        content, begin = container.read_header(file)
        metadata = content.pop(container.METADATA, {})
        ends = [_end(tensor) for tensor in content.values()]
        is_text = all(isinstance(text, str) for pair in metadata.items() for text in pair)
        "".join(content).encode()  # JSON can write halves of characters, of which no file can be made again
        "".join(text for pair in metadata.items() for text in pair).encode()
    except (struct.error, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise damaged from error
    if not is_text or begin + max(ends, default=0) != size:
        raise damaged
    if len(metadata) > container.MOST_METADATA or len(content) > container.MOST_TENSORS:
        raise DeltaError(f"'{label}' has more tensors or metadata than any model needs. Get it from somewhere else.")
    return Header(content, metadata, begin, size)


def _end(tensor: Mapping) -> int:
    """Where a tensor's bytes end. Raises ValueError, TypeError or KeyError for what describes none."""
    begin, end = tensor["data_offsets"]
    sizes = tensor["shape"]
    if not isinstance(tensor["dtype"], str) or not isinstance(sizes, list):
        raise ValueError("no tensor")
    if any(type(number) is not int for number in (begin, end, *sizes)) or min(begin, end - begin, *sizes, 0) < 0:
        raise ValueError("no tensor")
    return end
