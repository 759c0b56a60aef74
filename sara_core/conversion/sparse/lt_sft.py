"""LT-SFT (arXiv 2110.07560) as composable-sft keeps it: pytorch_diff.bin, written by torch.save.

It is {"diffs": {name: {"size", "index_steps", "values"}}, "abs": {name: tensor}}, names being the model's own. The
steps are the gaps between positions that count the *first* side fastest; "abs" holds whole weights, not changes.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ...delta import SparseEntry
from ...delta.entry import VALUE_DTYPES, check_shape
from ...delta.translate import to_comfy
from ...errors import DeltaError
from ...files.torch_file import is_plain
from ...models.base import Base
from ...names.diffusers import diffusers_parts
from ...names.resolve import PREFIX
from ..foreign_file import ForeignFile
from ..formats import Reader
from ..request import ReadRequest
from ..result import Conversion
from .entries import sorted_entry


class LtSftReader(Reader):
    """A file with changes alone, whose names and shapes are in it: a base only tells whether it fits."""

    called = "LT-SFT"
    names = ("LT-SFT",)
    needs_base = False
    files_in_folder = ("pytorch_diff.bin",)

    def recognises(self, file: ForeignFile) -> bool:
        """By what its entries are called."""
        return _is_lt_sft(file.content) and not _has_whole_weights(file.content)

    def read(self, file: ForeignFile, request: ReadRequest) -> Conversion:
        """Exactly its changes; without a base, by the names they have where their family is not known."""
        entries = read(file.content)
        if request.base is not None:
            return request.made(request.base.from_diffusers(entries))
        parts = diffusers_parts({name: entry.shape for name, entry in entries.items()})
        if parts:
            entries = {PREFIX + name: entry for name, entry in to_comfy(entries, parts).items()}
        return request.made(entries)


class WholeWeightsReader(Reader):
    """A file that has whole weights beside the changes, which are changes only beside the base's."""

    called = LtSftReader.called
    title = "LT-SFT with whole weights in it"
    takes_density = True
    files_in_folder = LtSftReader.files_in_folder

    def recognises(self, file: ForeignFile) -> bool:
        """By what its entries are called."""
        return _is_lt_sft(file.content) and _has_whole_weights(file.content)

    def read(self, file: ForeignFile, request: ReadRequest) -> Conversion:
        """All its sparse changes, and the largest of those that whole weights make."""
        content, base = file.content, request.base
        entries = read(content)
        if twice := entries.keys() & content["abs"].keys():
            raise DeltaError(
                f"The file changes '{min(twice)}' in several ways at once, by single elements and as a whole: nothing "
                "says which counts. Save it again with one of them."
            )
        kept = request.keep_largest(lambda: whole_weights(content, base), len(content["abs"]))
        return request.made(base.from_diffusers(entries | kept.entries), kept.lost)


def _is_lt_sft(content: Any) -> bool:
    return isinstance(content, dict) and "diffs" in content and set(content) <= {"diffs", "abs"}


def _has_whole_weights(content: Mapping) -> bool:
    whole = content.get("abs")
    return isinstance(whole, dict) and len(whole) > 0


def read(content: Mapping[str, Any]) -> dict[str, SparseEntry]:
    """The sparse changes by the model's own names. Raises DeltaError unless every one is sound."""
    diffs = content["diffs"]
    by_name = isinstance(diffs, dict) and isinstance(content.get("abs", {}), dict)
    if not by_name or not all(isinstance(name, str) for name in diffs):
        raise DeltaError("The file's changes are damaged: they are not by name. Get it again from where it came from.")
    return {name: _entry(name, diff) for name, diff in diffs.items()}


def whole_weights(content: Mapping[str, Any], base: Base) -> Iterator[tuple[str, torch.Tensor]]:
    """(the model's own name, dense change in float32) of the weights that the file replaces as a whole.

    Raises DeltaError for one that the base lacks or has in another shape.
    """
    for name, tensor in content["abs"].items():
        shape = base.diffusers_shapes.get(name)
        if shape is None or not is_plain(tensor, VALUE_DTYPES) or tuple(tensor.shape) != shape:
            raise DeltaError(f"The file's weight '{name}' does not fit '{base.label}'. Give the base it was made for.")
        yield name, tensor.detach() - base.diffusers_weight(name).float()


def _entry(name: str, diff: Any) -> SparseEntry:
    if not isinstance(diff, dict):
        raise _damaged(name)
    size, steps, values = (diff.get(key) for key in ("size", "index_steps", "values"))
    if not (_whole_numbers(size, tuple) and _whole_numbers(steps, list) and is_plain(values, VALUE_DTYPES, 1)):
        raise _damaged(name)
    shape = tuple(size)
    check_shape(name, shape)
    # Checked step by step: their sum stays below 2^63 for any list that fits into memory.
    if any(not 0 <= step < math.prod(shape) for step in steps):
        raise _damaged(name)
    positions = torch.tensor(steps, dtype=torch.int64).cumsum(0)
    if len(positions) and int(positions[-1]) >= math.prod(shape):
        raise _damaged(name)
    return sorted_entry(name, _row_major(positions, shape), values.detach(), shape)


def _row_major(positions: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Flat positions that count the last side fastest, from ones that count the first side fastest."""
    result = torch.zeros_like(positions)
    for side, stride in zip(shape, _strides(shape)):
        result += positions % side * stride
        positions = positions // side
    return result


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[place + 1 :]) for place in range(len(shape))]


def _whole_numbers(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and all(type(number) is int for number in value)


def _damaged(name: str) -> DeltaError:
    return DeltaError(f"The file's change of '{name}' is damaged. Get the file again from where it came from.")
