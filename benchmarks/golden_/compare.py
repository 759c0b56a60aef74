"""Whether two folders hold the same results, to the last bit.

Files of safetensors are compared tensor by tensor, by their bytes, so that NaN equals the same NaN and 0 is not -0.
Everything else is compared as it stands.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy

# Metadata that are JSON whose keys may come in another order, key → why. All others are equal to the last character:
# clocks and random names are held still while the results are made (stillness.py).
IN_ANY_ORDER = {"sara.baked": "it quotes the delta's own metadata, which safetensors reads in another order each time"}
METADATA = "__metadata__"
_SHOWN = 120


@dataclass
class Comparison:
    """What was compared, and every difference in words.

    tensors: in safetensors files; bytes: of both folders' files together, divided by two
    """

    files: int = 0
    tensors: int = 0
    bytes: int = 0
    differences: list[str] = field(default_factory=list)


class Tensor(NamedTuple):
    """A tensor as it stands in a file."""

    dtype: str
    shape: list[int]
    content: bytes


def compare_folders(old: Path, new: Path) -> Comparison:
    """Compare all files of two folders, by their paths within them."""
    result = Comparison()
    files = {side: {path.relative_to(side).as_posix() for path in side.rglob("*") if path.is_file()}
             for side in (old, new)}  # fmt: skip
    for name in sorted(files[old] | files[new]):
        if name not in files[new]:
            result.differences.append(f"{name}: only the old one is there")
        elif name not in files[old]:
            result.differences.append(f"{name}: only the new one is there")
        else:
            _compare_files(old / name, new / name, name, result)
    return result


def _compare_files(old: Path, new: Path, name: str, result: Comparison) -> None:
    contents = old.read_bytes(), new.read_bytes()
    result.files += 1
    result.bytes += sum(map(len, contents)) // 2
    holds_tensors = old.suffix == ".safetensors"
    if holds_tensors:
        result.tensors += len(_header(contents[0])[0].keys() - {METADATA})
    if contents[0] == contents[1]:
        return
    if holds_tensors:
        found = _differences_of_tensors(*map(_parsed, contents))
    else:
        found = [_first_difference(*contents)]
    result.differences += [f"{name}: {difference}" for difference in found]


def _header(content: bytes) -> tuple[dict, int]:
    """The header of a safetensors file, and where its tensors begin."""
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length]), 8 + length


def _parsed(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, in the order in which they lie in it, and its metadata."""
    header, begin = _header(content)
    metadata = header.pop(METADATA, {})
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        tensors[name] = Tensor(entry["dtype"], entry["shape"], content[begin + first : begin + last])
    return tensors, metadata


def _differences_of_tensors(old: tuple[dict, dict], new: tuple[dict, dict]) -> Iterator[str]:
    (old_tensors, old_metadata), (new_tensors, new_metadata) = old, new
    yield from _missing("tensor", old_tensors, new_tensors)
    for name in (name for name in old_tensors if name in new_tensors):
        yield from (f"tensor '{name}': {what}" for what in _differences_of_one(old_tensors[name], new_tensors[name]))
    if old_tensors == new_tensors and list(old_tensors) != list(new_tensors):
        yield "its tensors lie in another order"
    yield from _missing("metadata key", old_metadata, new_metadata)
    for key in (key for key in old_metadata if key in new_metadata):
        texts = [_comparable(key, metadata[key]).encode() for metadata in (old_metadata, new_metadata)]
        if texts[0] != texts[1]:
            yield f"metadata key '{key}': {_first_difference(*texts)}"


def _comparable(key: str, text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True) if key in IN_ANY_ORDER else text


def _differences_of_one(old: Tensor, new: Tensor) -> Iterator[str]:
    if old.dtype != new.dtype:
        yield f"it is {old.dtype} in the old one, {new.dtype} in the new one"
    elif old.shape != new.shape:
        yield f"its shape is {old.shape} in the old one, {new.shape} in the new one"
    elif old.content != new.content:
        count = numpy.count_nonzero(numpy.frombuffer(old.content, "u1") != numpy.frombuffer(new.content, "u1"))
        yield f"{count} of {len(old.content)} bytes differ"


def _missing(what: str, old: dict, new: dict) -> Iterator[str]:
    yield from (f"{what} '{name}' is only in the old one" for name in old if name not in new)
    yield from (f"{what} '{name}' is only in the new one" for name in new if name not in old)


def _first_difference(old: bytes, new: bytes) -> str:
    """The first lines that differ, of texts; of other files, where they begin to."""
    place = next((place for place, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new)))
    try:
        lines = [text.decode() for text in (old, new)]
    except UnicodeDecodeError:
        return f"differs from byte {place} on ({len(old)} bytes in the old one, {len(new)} in the new one)"
    begin = max(0, len(old[:place].decode(errors="ignore")) - 30)
    shown = [repr(text[begin : begin + _SHOWN]) for text in lines]
    return f"{shown[0]} in the old one, {shown[1]} in the new one"
