"""Streaming a delta into a checkpoint file: one tensor in memory at a time, untouched tensors byte for byte."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from . import atomic, names
from .delta import SparseDelta, check_fits
from .elements import add_sparse_
from .entry import SparseEntry
from .errors import DeltaError, UnsupportedModelError
from .formats import container

RECORD = "sara.baked"

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK = 1 << 24


def bake(
    base: str | os.PathLike,
    target: str | os.PathLike,
    delta: SparseDelta,
    strength: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write to `target` the checkpoint `base` with every named weight round(float32(weight) + strength · Δ).

    Each weight keeps its dtype, every other tensor its bytes, the file its metadata, to which the bake is added under
    "sara.baked". The target appears only when complete. `on_progress` is called with bytes done and bytes in all,
    and may raise to stop.
    Raises DeltaError if a file cannot be read or written, or the delta does not fit the checkpoint;
    UnsupportedModelError, by name, for a weight that is stored as fp8 or quantised.
    """
    base, target = Path(base), Path(target)
    if not math.isfinite(strength):
        raise DeltaError(f"Strength must be a finite number, not {strength}.")
    if base.suffix.lower() != ".safetensors":
        raise DeltaError(f"'{base.name}' is not a .safetensors file. Save the checkpoint as .safetensors first.")
    with container.opened(base):
        pass  # the library that reads such files everywhere has checked the header that is read by hand below
    if target.exists() and target.samefile(base):
        raise DeltaError(f"'{base.name}' cannot be baked into itself. Choose another name for the result.")
    with open(base, "rb") as source:
        header, begin = container.read_header(source)
        metadata = header.pop(container.METADATA, {})
        entries = _entries(header, delta, base.name)
        total = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        with atomic.replacing(target) as file:
            container.write_header(file, {container.METADATA: _recorded(metadata, delta, strength), **header})
            source.seek(begin)
            for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                start, end = tensor["data_offsets"]
                if name in entries:
                    _write_changed(source, file, end - start, _DTYPES[tensor["dtype"]], entries[name], strength)
                else:
                    _copy(source, file, end - start)
                if on_progress is not None:
                    on_progress(end, total)


def _entries(header: Mapping[str, Mapping], delta: SparseDelta, checkpoint: str) -> dict[str, SparseEntry]:
    """The delta's entries under the checkpoint's names, checked against its shapes and dtypes."""
    entries = {}
    for name, found in names.resolve(delta.entries, header, f"the checkpoint '{checkpoint}'").items():
        entry, tensor = delta.entries[name], header[found]
        check_fits(found, entry, tuple(tensor["shape"]))
        if tensor["dtype"] not in _DTYPES:
            raise UnsupportedModelError(
                f"The weight '{found}' of '{checkpoint}' is stored as {tensor['dtype']}: a sparse delta would be lost "
                "in its rounding. Bake into the fp16, bf16 or fp32 version of the checkpoint."
            )
        entries[found] = entry
    return entries


def _recorded(metadata: Mapping[str, str], delta: SparseDelta, strength: float) -> dict[str, str]:
    """The checkpoint's metadata with this bake added to the list of those it went through."""
    try:
        earlier = json.loads(metadata.get(RECORD, "[]"))
    except ValueError:
        earlier = []
    bake_record = {"strength": strength, "changed": delta.nnz, "delta": delta.metadata}
    return {**metadata, RECORD: json.dumps([*(earlier if isinstance(earlier, list) else []), bake_record])}


def _write_changed(
    source: BinaryIO, file: BinaryIO, size: int, dtype: torch.dtype, entry: SparseEntry, strength: float
) -> None:
    weight = torch.frombuffer(bytearray(source.read(size)), dtype=dtype)
    add_sparse_(weight, entry.indices.cpu(), entry.values.cpu(), strength)
    container.write_tensor(file, weight)


def _copy(source: BinaryIO, file: BinaryIO, size: int) -> None:
    while size:
        chunk = source.read(min(size, _CHUNK))
        if not chunk:
            raise DeltaError("The checkpoint became shorter while it was read. Run it again.")
        file.write(chunk)
        size -= len(chunk)
