"""Version 1 of the delta file; docs/format.md specifies it. What is read is hostile until it has been checked here."""

import math
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch

from ..errors import DeltaError
from ..files import atomic, container, disk
from ..names.resolve import WEIGHT, check_distinct
from ..wording import Sentence
from . import metadata as keys
from . import modelspec
from .entry import MAX_DIMENSIONS, SparseEntry, all_finite, check_finite, check_shape

VERSION = "1"
SUFFIX = ".safetensors"
Progress = Callable[[int, int], None]
PARTS = ("head", "index", "values")
STORED_DTYPES = (torch.float32, torch.bfloat16)
# Of a change in a file in float32, beside its position.
VALUE_BYTES = 4

_MARK = ".sara1_"
_PART_NAME = re.compile(r"(?P<stem>.+)\.sara(?P<version>\d+)_(?P<part>\w+)", re.DOTALL)
_KIND_WEIGHT, _KIND_WHOLE_KEY = 0, 1
ESCAPE = 255
_INT32_MAX = 2**31 - 1
_MANY_ESCAPES = 8  # for each position
# What zlib only stores is read several times as fast. That is worth its room where the stream has no more bytes for a
# position than this (with bf16 values a file stays within 3.1 bytes a change), and where positions are this far apart
# on average, or it would take more than twice the room.
STORED_BYTES, STORED_DISTANCE = 1.05, 8
# zlib, numpy and reading let other threads run meanwhile; small deltas are not worth it.
_THREADS = min(8, os.cpu_count() or 1)
# Results that wait to be taken: whoever stops, or the first damaged entry, ends the work soon.
_WAITING = 2 * _THREADS
_WORTH_THREADS = 500_000
# Far above what any model needs: a small file must not mean long work.
MOST_ENTRIES, MOST_ELEMENTS = 1 << 14, 1 << 38


def write(
    path: str | os.PathLike,
    entries: Mapping[str, SparseEntry],
    metadata: Mapping[str, str],
    dtype: torch.dtype,
    overwrite: bool = True,
) -> None:
    """Write entries and metadata to `path`, atomically, and what belongs to the file itself: its version and hash.

    entries: as entry.check_entry demands; dtype: of the values in the file, one of STORED_DTYPES

    Raises DeltaError if it cannot be written, or for another dtype, another ending than SUFFIX, or values that `dtype`
    cannot hold; NameTakenError if it would replace something and must not.
    """
    if dtype not in STORED_DTYPES:
        raise DeltaError(f"Values can be saved as float32 or bfloat16, not {dtype}.")
    path = Path(path)
    if path.suffix.lower() != SUFFIX:
        raise DeltaError(f"'{path.name}': a delta file's name must end in {SUFFIX}.")
    tensors: dict[str, torch.Tensor] = {}
    count = sum(len(entry.indices) for entry in entries.values())
    for stem, encoded in _each(lambda item: encode(*item, dtype), entries.items(), count):
        if part_name(stem, "head") in tensors:
            raise DeltaError(f"The delta has two weights that the file would both call '{stem}'; rename one.")
        tensors.update((part_name(stem, part), tensor) for part, tensor in zip(PARTS, encoded))
    metadata = {**metadata, keys.VERSION: VERSION}
    metadata.pop(modelspec.HASH, None)  # of the file that the delta came from
    if modelspec.VERSION_KEY in metadata:
        metadata[modelspec.HASH] = "0x" + container.content_sha256(tensors)
    disk.check_room(path, sum(tensor.nbytes for tensor in tensors.values()), "The delta")
    with atomic.writing(path, overwrite) as file:
        container.write(file, tensors, metadata)


def read(
    path: str | os.PathLike, advice: Callable[[Collection[str]], str], on_progress: Progress | None = None
) -> tuple[dict[str, SparseEntry], dict[str, str]]:
    """Entries, checked and on the CPU, and metadata of a delta file. Raises DeltaError for anything but a sound
    version 1 file.

    advice: what to do with a file that is not only a delta, by the names of its tensors: a sentence for the error
    on_progress: called with entries done and entries in all; may raise to stop
    """
    with container.opened_copied(path) as file:
        parts = _sound_parts(file, advice)
        work = sum(_longest_stream(len(part.values), math.prod(part.shape)) for part in parts)
        entries = {}
        for part, entry in zip(parts, _each(_entry, parts, work)):
            entries[part.name] = entry
            if on_progress is not None:
                on_progress(len(entries), len(parts))
        return entries, file.metadata() or {}


def read_sizes(path: str | os.PathLike) -> dict[str, tuple[int, int]]:
    """Weight name → how many of its elements a delta file changes, and how many it has; no position and no value is
    read. Raises DeltaError as `read`, but for what only those can tell."""
    with container.opened_copied(path) as file:
        parts = _sound_parts(file, lambda names: "Choose a file that was saved as a delta.")
        return {part.name: (len(part.values), math.prod(part.shape)) for part in parts}


def _sound_parts(file: container.Copied, advice: Callable[[Collection[str]], str]) -> list["_Parts"]:
    """The tensors of every entry, as far as their headers and heads tell. Raises DeltaError as `read`."""
    found = stems(file.keys(), advice)
    if len(found) > MOST_ENTRIES:
        raise _too_much(f"{len(found):,} weights, and no more than {MOST_ENTRIES:,}")
    parts = [_parts(stem, file.not_read, file.get_tensor) for stem in found]
    if (elements := sum(math.prod(part.shape) for part in parts)) > MOST_ELEMENTS:
        raise _too_much(f"weights of {elements:,} elements together, and of no more than {MOST_ELEMENTS:,}")
    check_distinct(part.name for part in parts)
    return parts


def part_name(stem: str, part: str) -> str:
    """Name of the tensor that holds a part (head, index or values) of an entry."""
    return f"{stem}{_MARK}{part}"


def part_names(stem: str) -> list[str]:
    """Names of an entry's three tensors, in the order of PARTS."""
    return [part_name(stem, part) for part in PARTS]


def is_delta(names: Iterable[str]) -> bool:
    """Whether a file with tensors of these names is a delta of this version or another, whatever is in it beside."""
    return any(_PART_NAME.fullmatch(name) for name in names)


def stems(names: Iterable[str], advice: Callable[[Collection[str]], str]) -> list[str]:
    """The stems of all entries. Raises DeltaError unless every tensor belongs to a complete version 1 entry."""
    names = list(names)
    found: dict[str, set[str]] = {}
    foreign = []
    for name in names:
        match = _PART_NAME.fullmatch(name)
        if match is None:
            foreign.append(name)
        elif match["version"] != VERSION or match["part"] not in PARTS:
            raise DeltaError(Sentence("It was made by a newer version of SaRA. Update SaRA to load it."))
        else:
            found.setdefault(match["stem"], set()).add(match["part"])
    if not found:
        raise DeltaError(Sentence("It is not a SaRA delta. {advice}", advice=advice(names)))
    if foreign:
        raise DeltaError(Sentence(
            "Besides the delta it has {count} tensors that are not SaRA's (such as '{name}'). {advice}",
            count=len(foreign), name=foreign[0], advice=advice(names),
        ))  # fmt: skip
    for stem, parts in found.items():
        for part in PARTS:
            if part not in parts:
                raise _damaged(stem, f"its {part} is missing")
    return sorted(found)


def encode(name: str, entry: SparseEntry, dtype: torch.dtype) -> tuple[str, tuple[torch.Tensor, ...]]:
    """The entry's stem and its three tensors: head int64 [2 + dimensions], index uint8 [·], values `dtype` [n].

    Raises DeltaError for values that `dtype` cannot hold.
    """
    values = entry.values.detach().cpu().to(dtype)
    if not all_finite(values):
        raise DeltaError(f"'{name}' has changes too large for {dtype}; save the delta with float32 values.")
    kind = _KIND_WEIGHT if name.endswith(WEIGHT) else _KIND_WHOLE_KEY
    stem = name.removesuffix(WEIGHT)
    head = torch.tensor([kind, len(values), *entry.shape], dtype=torch.int64)
    packed = bytearray(encode_indices(entry.indices.cpu().numpy()))
    return stem, (head, torch.frombuffer(packed, dtype=torch.uint8), values)


def decode(stem: str, tensor_named: Callable[[str], torch.Tensor]) -> tuple[str, SparseEntry]:
    """The weight's name and its entry, from the entry's three tensors, each by its full name. Raises DeltaError if they
    are not sound."""
    parts = _parts(stem, tensor_named, lambda name: tensor_named(name).clone())
    return parts.name, _entry(parts)


class _Parts(NamedTuple):
    """An entry's three tensors, each of them sound by itself. values: not read yet; content: name → tensor of its own
    memory, read now."""

    stem: str
    kind: int
    shape: tuple[int, ...]
    values: torch.Tensor
    content: Callable[[str], torch.Tensor]

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.stem + WEIGHT if self.kind == _KIND_WEIGHT else self.stem


def _parts(stem: str, not_read: Callable[[str], torch.Tensor], content: Callable[[str], torch.Tensor]) -> _Parts:
    head, index, values = map(not_read, part_names(stem))
    if head.dtype != torch.int64 or head.dim() != 1 or not 2 <= len(head) <= 2 + MAX_DIMENSIONS:
        raise _damaged(stem, "its head is not a short list of int64")
    kind, count, *shape = content(part_name(stem, "head")).tolist()
    if kind not in (_KIND_WEIGHT, _KIND_WHOLE_KEY):
        raise _damaged(stem, f"its kind is {kind}, which this version does not know")
    if values.dtype not in STORED_DTYPES or values.dim() != 1 or len(values) != count:
        raise _damaged(stem, f"its values are not a list of {count} float32 or bfloat16 numbers")
    if index.dtype != torch.uint8 or index.dim() != 1:
        raise _damaged(stem, "its index is not a list of bytes")
    check_shape(stem, tuple(shape))
    return _Parts(stem, kind, tuple(shape), values, content)


def _entry(parts: _Parts) -> SparseEntry:
    """All of check_entry holds of it: no stream says positions out of order, and the rest is checked here or before."""
    stem, _, shape, values, content = parts
    count, numel = len(values), math.prod(shape)
    try:
        packed = content(part_name(stem, "index")).numpy()
        indices = stream_positions(unpacked_stream(packed, count, numel), count, numel)
    except ValueError as error:
        raise _damaged(stem, f"its index {error}") from error
    values = content(part_name(stem, "values"))
    check_finite(stem, values)
    return SparseEntry(torch.from_numpy(indices), values, shape)


def encode_indices(indices: numpy.ndarray) -> bytes:
    """Strictly increasing int32 [n], from 0 on → gap bytes (docs/format.md) as zlib data: stored as they are, or
    through zlib's Huffman-only strategy."""
    gaps = numpy.diff(indices, prepend=numpy.int32(-1)) - 1
    if not len(gaps) or gaps.max() < ESCAPE:
        stream = gaps.astype(numpy.uint8)
    else:
        escapes = gaps // ESCAPE
        ends = numpy.cumsum(escapes + 1, dtype=numpy.int64) - 1
        stream = numpy.full(int(ends[-1]) + 1, ESCAPE, dtype=numpy.uint8)
        stream[ends] = gaps - escapes * ESCAPE
    if len(gaps) and len(stream) <= STORED_BYTES * len(gaps) and indices[-1] >= STORED_DISTANCE * len(gaps):
        return zlib.compress(stream.data, zlib.Z_NO_COMPRESSION)
    # Gaps of a sparse support have no repetitions to find: matching costs time and gains nothing.
    packer = zlib.compressobj(zlib.Z_BEST_COMPRESSION, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return packer.compress(stream.data) + packer.flush()


def unpacked_stream(packed: bytes | numpy.ndarray, count: int, numel: int) -> bytes:
    """The gap bytes of `count` positions below `numel`, none looked at yet.

    Raises ValueError, before it takes more memory than they may need (about count + numel / 255 bytes), unless `packed`
    is zlib data of about that many.
    """
    if not 0 <= count <= numel:
        raise ValueError(f"claims {count} positions in a weight of {numel} elements")
    longest = _longest_stream(count, numel)
    unpacker = zlib.decompressobj()
    try:
        stream = unpacker.decompress(packed, longest + 1)
    except zlib.error as error:
        raise ValueError(f"cannot be unpacked ({error})") from error
    if len(stream) > longest:
        raise ValueError("holds more than its weight has room for")
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("is cut short or followed by something else")
    return stream


def _longest_stream(count: int, numel: int) -> int:
    """The gaps of `count` positions below `numel` add up to at most numel - count, each escape standing for 255."""
    return count + (numel - count) // ESCAPE


def stream_positions(unpacked: bytes, count: int, numel: int) -> numpy.ndarray:
    """What unpacked_stream gave as int32 [count], strictly increasing, all below numel. Raises ValueError otherwise."""
    stream = numpy.frombuffer(unpacked, dtype=numpy.uint8)
    is_end = stream != ESCAPE
    if numpy.count_nonzero(is_end) != count or (len(stream) and not is_end[-1]):
        raise ValueError(f"does not hold {count} positions")
    if len(stream) > _MANY_ESCAPES * (count + 1):
        return _few_positions(stream, is_end, numel)
    # Where int32 could overflow below, the sum is taken in int64 first.
    could_overflow = len(stream) * ESCAPE + count > _INT32_MAX
    if could_overflow and int(stream.sum(dtype=numpy.int64)) + count > numel:
        raise ValueError(f"points outside a weight of {numel} elements")
    # One more for each position, which counts them as it adds; no byte exceeds 255 by it, as escapes get none.
    steps = stream + is_end
    steps[:1] -= 1  # The first position is 0, not 1, with nothing before it.
    indices = steps.cumsum(dtype=numpy.int32)
    if len(indices) > count:
        indices = indices.compress(is_end)
    if count and indices[-1] >= numel:
        raise ValueError(f"points outside a weight of {numel} elements")
    return indices


def _few_positions(stream: numpy.ndarray, is_end: numpy.ndarray, numel: int) -> numpy.ndarray:
    """As stream_positions, from what it has found, with numbers for the positions alone: most bytes are escapes."""
    ends = numpy.flatnonzero(is_end)
    order = numpy.arange(len(ends))
    positions = stream[ends].cumsum(dtype=numpy.int64) + ESCAPE * (ends - order) + order
    if len(positions) and positions[-1] >= numel:
        raise ValueError(f"points outside a weight of {numel} elements")
    return positions.astype(numpy.int32)


def _each(function: Callable[[Any], Any], items: Iterable, elements: int) -> Iterator:
    """function(item) for each, in order, in several threads if there are many elements in them all."""
    if elements < _WORTH_THREADS:
        yield from map(function, items)
        return
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(_THREADS) as threads:
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) == _WAITING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _too_much(what: str) -> DeltaError:
    return DeltaError(f"It claims changes of {what} are read: no model needs as many. Get it from somewhere else.")


def _damaged(stem: str, finding: str) -> DeltaError:
    return DeltaError(Sentence(
        "The delta's entry '{name}' is damaged: {finding}. Get the file again from where it came from.", name=stem,
        finding=finding,
    ))  # fmt: skip
