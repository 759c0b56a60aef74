"""Writing a checkpoint anew with a delta added, one weight in memory at a time: in its own precision, or without its
quantisation."""

from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, NamedTuple, Protocol

import torch

from ..delta import SparseEntry
from ..errors import DeltaError
from ..files import container
from .quantised import elements
from .quantised.elements import DTYPES, FLOAT8
from .quantised.file import DESCRIPTIONS, MARK, Found, QuantisedFile
from .quantised.formats import unsupported
from .quantised.loss import Loss

_CHUNK = 1 << 24
_SHORTER = "The checkpoint became shorter while it was read. Run it again."
_QUANTISED_DTYPES = {*FLOAT8, "I8", "U8"}

OnProgress = Callable[[int, int], None] | None


class Unquantised(NamedTuple):
    """A tensor of a checkpoint as it will be without quantisation.

    name; dtype: as safetensors calls it; shape; size: in bytes, once it is written
    read: its contents: float32 where it was quantised, bytes if it is not floating
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    read: Callable[[], torch.Tensor]


class Readable(Protocol):
    """A checkpoint that can be written without quantisation. metadata: of the result, text → text"""

    metadata: Mapping[str, str]

    def unquantised(self, dtype: str) -> Iterator[Unquantised]:
        """All tensors that the checkpoint then has, quantised weights in this dtype ("BF16", "F16")."""


def in_its_precision(
    source: BinaryIO,
    checkpoint: QuantisedFile,
    found: Mapping[str, Found | None],
    entries: Mapping[str, SparseEntry],
    strength: float,
    metadata: Mapping[str, str],
    on_progress: OnProgress,
) -> Callable[[BinaryIO], Loss]:
    """What writes the checkpoint with every entry's weight round(weight + strength · Δ) in its own format, every other
    tensor byte for byte. found: what the weights of the entries are"""
    header = checkpoint.header
    total = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)

    def write(file: BinaryIO) -> Loss:
        loss, done = Loss(), set()
        container.write_header(file, {container.METADATA: metadata, **header})
        begin = file.tell()
        for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, end = tensor["data_offsets"]
            if name in entries:
                for changed, content in _changed(checkpoint, name, found[name], entries[name], strength, loss).items():
                    # Scales may lie anywhere in the file, before the weight or behind it.
                    file.seek(begin + header[changed]["data_offsets"][0])
                    container.write_tensor(file, content)
                    done.add(changed)
            elif name not in done:
                source.seek(checkpoint.begin + start)
                file.seek(begin + start)
                _copy(source, file, end - start)
            if on_progress is not None:
                on_progress(end, total)
        return loss

    return write


def _changed(
    checkpoint: QuantisedFile, name: str, found: Found | None, entry: SparseEntry, strength: float, loss: Loss
) -> dict[str, torch.Tensor]:
    """The new contents of a weight, and of the scales that changed with it, by their names in the file."""
    if found is None:
        weight = checkpoint.read(name)
        elements.add_(name, weight.view(-1), entry, strength, loss)
        return {name: weight}
    changed = found.format.add(checkpoint.layer(name, found), entry, strength, loss)
    return {name if own == "weight" else found.beside[own]: content for own, content in changed.items()}


def without_quantisation(
    checkpoint: Readable,
    entries: Mapping[str, SparseEntry],
    strength: float,
    dtype: str,
    metadata: Mapping[str, str],
    on_progress: OnProgress,
) -> tuple[int, Callable[[BinaryIO], Loss]]:
    """The size of the result in bytes, and what writes it: quantised weights in another dtype, rounded once with the
    delta; every other tensor, with its entry if it has one, in its own dtype. All that can be refused before anything
    is written is refused here."""
    tensors = list(checkpoint.unquantised(dtype))
    header: dict = {container.METADATA: metadata}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.size
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}

    def write(file: BinaryIO) -> Loss:
        loss = Loss()
        container.write_header(file, header)
        for tensor in tensors:
            container.write_tensor(file, _unquantised(tensor, entries.get(tensor.name), strength, loss))
            if on_progress is not None:
                on_progress(header[tensor.name]["data_offsets"][1], end)
        return loss

    return end, write


def _unquantised(tensor: Unquantised, entry: SparseEntry | None, strength: float, loss: Loss) -> torch.Tensor:
    content = tensor.read()
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None and entry is not None:
        raise unsupported(tensor.name, "the checkpoint", tensor.dtype)
    if dtype is None or content.dtype == dtype:
        if entry is not None:
            elements.add_(tensor.name, content.view(-1), entry, strength, loss)
        return content
    if entry is None:
        return elements.rounded(tensor.name, content, dtype)
    return elements.added_to(tensor.name, content.view(-1), entry, strength, dtype, loss)


class Dequantised:
    """A safetensors file without its quantisation."""

    def __init__(self, checkpoint: QuantisedFile):
        self._checkpoint = checkpoint
        self.metadata = {name: text for name, text in checkpoint.metadata.items() if name != DESCRIPTIONS}

    def unquantised(self, dtype: str) -> Iterator[Unquantised]:
        """Raises UnsupportedModelError, by name, for a weight in a format that is not known."""
        header = self._checkpoint.header
        quantised = {name: found for name in header if (found := self.found(name)) is not None}
        dropped = {place for found in quantised.values() for place in found.beside.values()}
        shapes = self._checkpoint.shapes
        for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if name in dropped or name.rpartition(".")[2] == MARK:
                continue
            if name in quantised:
                size = torch.Size(shapes[name]).numel() * DTYPES[dtype].itemsize
                yield Unquantised(name, dtype, shapes[name], size, self._reader(name, quantised[name]))
            else:
                start, end = tensor["data_offsets"]
                yield Unquantised(name, tensor["dtype"], tuple(tensor["shape"]), end - start, self._as_it_is(name))

    def found(self, name: str) -> Found | None:
        """What a tensor is, if it is a quantised one. Raises UnsupportedModelError, by name, as `unquantised`."""
        stored = self._checkpoint.header[name]["dtype"]
        is_weight = name.endswith(".weight") and len(self._checkpoint.header[name]["shape"]) > 1
        if stored in FLOAT8 and name.rpartition(".")[2] != MARK and not self._checkpoint.is_beside(name):
            return self._checkpoint.found(name)
        return self._checkpoint.found(name) if is_weight and stored in _QUANTISED_DTYPES else None

    def _reader(self, name: str, found: Found) -> Callable[[], torch.Tensor]:
        return lambda: found.format.dequantised(self._checkpoint.layer(name, found))

    def _as_it_is(self, name: str) -> Callable[[], torch.Tensor]:
        floating = self._checkpoint.header[name]["dtype"] in DTYPES
        return lambda: self._checkpoint.read(name) if floating else self._checkpoint.raw(name)


def _copy(source: BinaryIO, file: BinaryIO, size: int) -> None:
    while size:
        chunk = source.read(min(size, _CHUNK))
        if not chunk:
            raise DeltaError(_SHORTER)
        file.write(chunk)
        size -= len(chunk)
