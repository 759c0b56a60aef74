"""The safetensors container as a stream: header and tensor bytes one after another, never the whole file in memory.

Layout (the safetensors specification): uint64 little-endian length of the header, the header as JSON padded with
spaces, then the tensors' bytes. https://github.com/huggingface/safetensors
"""

import contextlib
import hashlib
import json
import os
import struct
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from ..errors import DeltaError
from ..wording import Sentence
from . import long_paths

METADATA = "__metadata__"
_ALIGNMENT = 8
# Far above what any model's file has. Every one of them costs time, however small the file.
MOST_METADATA, MOST_TENSORS = 1 << 14, 1 << 17
_LENGTH = struct.Struct("<Q")
# Longer ones safetensors refuses.
_LONGEST_HEADER = 100_000_000

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[safe_open]:
    """The safetensors file at `path`, its header checked, open as long as the block lasts; its tensors are views of the
    mapped file, on the CPU. Raises DeltaError if it is missing, unreadable, damaged, or has more tensors or metadata
    than any file needs."""
    path = Path(path)
    with _in_words(path), safe_open(path, framework="pt", device="cpu") as file:
        _check_amounts(path.name, file)
        yield file


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """Errors of what is done with the file, or that there is none, as DeltaErrors."""
    try:
        if not path.is_file():
            if (too_long := long_paths.remedy(path)) is not None:
                raise DeltaError(f"The file '{path}' cannot be found: {too_long}.")
            if os.path.lexists(path) and not path.is_dir():
                raise not_ordinary(path)
            raise DeltaError(Sentence(
                "The file '{path}' does not exist. Choose another one, or put it there again.", path=str(path)
            ))  # fmt: skip
        yield
    except SafetensorError as error:
        raise DeltaError(
            f"'{path.name}' is not a complete .safetensors file ({error}). Download or save it again."
        ) from error
    except OSError as error:
        raise not_readable(path, error) from error


def not_ordinary(path: Path) -> DeltaError:
    """The error for what is there and is neither a file nor a folder."""
    return DeltaError(Sentence(
        "'{path}' is no ordinary file (a broken link, a pipe or a device). Choose another one.", path=str(path)
    ))  # fmt: skip


def not_readable(path: Path, error: OSError) -> DeltaError:
    """The error for a file that the system does not let read."""
    return DeltaError(Sentence(
        "'{name}' cannot be read ({why}). Check its permissions.", name=path.name, why=error.strerror or str(error)
    ))  # fmt: skip


def _check_amounts(label: str, file: safe_open) -> None:
    metadata = file.metadata() or ()
    for what, amount, most in (
        ("tensors", len(file.keys()), MOST_TENSORS), ("entries of metadata", len(metadata), MOST_METADATA)
    ):  # fmt: skip
        if amount > most:
            raise DeltaError(
                f"'{label}' has {amount:,} {what}, and no more than {most:,} are read: no model needs as many. Get the "
                "file from somewhere else."
            )


class Copied:
    """What `opened` gives of a file, but each tensor read into memory of its own.

    What is mapped is gone, and the process with it, when another program cuts the file short: one that downloads it
    again under its name, or a synchronised folder. For files that are small or read a tensor at a time.
    """

    def __init__(self, file: safe_open, content: BinaryIO):
        self._file, self._content, self._reading = file, content, threading.Lock()
        self._known: dict[str, tuple[list[int], torch.dtype | None]] = {}
        # Read once more, because what `opened` has checked may be another file by now: then it says anything.
        try:
            self._header, self._begin = read_header(content)
        except (ValueError, struct.error, OverflowError, MemoryError, RecursionError) as error:
            raise self._changed() from error

    def keys(self) -> list[str]:
        """The tensors' names."""
        return self._file.keys()

    def metadata(self) -> dict[str, str] | None:
        """Text → text; None if the file has none."""
        return self._file.metadata()

    def get_slice(self, name: str) -> Any:
        """What safe_open gives: a tensor's shape without its content."""
        return self._file.get_slice(name)

    def not_read(self, name: str) -> torch.Tensor:
        """What has a tensor's dtype and shape, and no content (on the device "meta") but for a dtype that is not in
        DTYPE_NAMES: that is any content. Raises DeltaError as `get_tensor`."""
        shape, dtype = self._described(name)
        return self._file.get_tensor(name) if dtype is None else torch.empty(shape, dtype=dtype, device="meta")

    def get_tensor(self, name: str) -> torch.Tensor:
        """A tensor in memory of its own, from any thread. Raises DeltaError if the file has changed since it was
        opened."""
        shape, dtype = self._described(name)
        tensor = torch.empty(shape, dtype=self._file.get_tensor(name).dtype if dtype is None else dtype)
        try:
            start, end = self._header[name]["data_offsets"]
            if start < 0 or end - start != tensor.nbytes:
                raise self._changed()
            with self._reading:
                self._content.seek(self._begin + start)
                read = self._content.readinto(tensor.view(-1).view(torch.uint8).numpy())
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self._changed() from error
        if read != tensor.nbytes:
            raise self._changed()
        return tensor

    def _described(self, name: str) -> tuple[list[int], torch.dtype | None]:
        """A tensor's shape, and its dtype or None if DTYPE_NAMES has it not. Raises DeltaError as `get_tensor`."""
        if name not in self._known:
            shape = self._file.get_slice(name).get_shape()
            try:
                same_shape, dtype = self._header[name]["shape"] == shape, _DTYPES.get(self._header[name]["dtype"])
            except (KeyError, TypeError) as error:
                raise self._changed() from error
            if not same_shape:
                raise self._changed()
            self._known[name] = shape, dtype
        return self._known[name]

    def _changed(self) -> DeltaError:
        name = Path(self._content.name).name
        return DeltaError(f"'{name}' was changed by another program while it was read. Wait until that is done.")


@contextlib.contextmanager
def opened_copied(path: str | os.PathLike) -> Iterator[Copied]:
    """As `opened`, for a file that others may be writing: its tensors are copies, and it is never mapped. (On Windows
    it is: there nobody can cut a mapped file short.)"""
    path = Path(path)
    with _in_words(path), open(path, "rb") as content, _header_alone(content) as mapped:
        with safe_open(mapped, framework="pt", device="cpu") as file:
            _check_amounts(path.name, file)
            yield Copied(file, content)


@contextlib.contextmanager
def _header_alone(content: BinaryIO) -> Iterator[str]:
    """The path of a file of one's own, with the same header and length, for safetensors to check; what would be its
    tensors takes no room on the disk. Where it cannot be made, and on Windows, the path of the file itself."""
    with contextlib.ExitStack() as until_closed:
        mapped = content.name
        if os.name != "nt":
            with contextlib.suppress(OSError):
                alone = until_closed.enter_context(tempfile.NamedTemporaryFile(suffix=".safetensors"))
                start = content.read(_LENGTH.size)
                length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else 0
                alone.write(start + content.read(min(length, _LONGEST_HEADER)))
                alone.flush()
                os.truncate(alone.name, os.fstat(content.fileno()).st_size)
                mapped = alone.name
        content.seek(0)
        yield mapped


def read_header(file: BinaryIO) -> tuple[dict, int]:
    """The header of a file that `opened` has accepted, and where its tensors' bytes begin.

    Of each tensor the header has "dtype" (a name as in DTYPE_NAMES), "shape" and "data_offsets": where its bytes begin
    and end, relative to that beginning. The file's metadata, text → text, are under METADATA, if it has any.
    """
    (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
    return json.loads(file.read(length)), _LENGTH.size + length


def write_header(file: BinaryIO, header: Mapping) -> None:
    """Write a header, as `read_header` gives one, padded so that the tensors' bytes begin aligned."""
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(_LENGTH.pack(len(text)))
    file.write(text)


def write(file: BinaryIO, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a whole safetensors file; tensors of wider dtypes first, so that every one is aligned.

    tensors: name → tensor of a dtype in DTYPE_NAMES, on any device, in any memory layout
    """
    ordered = _in_file_order(tensors)
    header: dict = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    write_header(file, header)
    for _, tensor in ordered:
        write_tensor(file, tensor)


def content_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256, hexadecimal, of all that `write` puts after the header for the same tensors."""
    digest = hashlib.sha256()
    for _, tensor in _in_file_order(tensors):
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def write_tensor(file: BinaryIO, tensor: torch.Tensor) -> None:
    """Write the tensor's elements in row-major order, little-endian."""
    file.write(_bytes(tensor))


def _in_file_order(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    return sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
