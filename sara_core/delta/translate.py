"""Entries of a delta between diffusers' parameter names and ComfyUI's, with slices of fused weights.

Without the prefix `diffusion_model.` throughout this file. Where each parameter lies, names/diffusers.py knows.
"""

import math
from collections.abc import Iterable, Mapping

import torch

from ..errors import DeltaError
from ..names.diffusers import Shape, check_known
from ..names.parts import Part
from .entry import SparseEntry, check_entry, check_shape


def to_comfy(entries: Mapping[str, SparseEntry], parts: Mapping[str, Part]) -> dict[str, SparseEntry]:
    """Entries by diffusers names → entries by ComfyUI's names; parts of one weight become one entry.

    Raises DeltaError if a name is not in `parts`, a shape cannot be that of its part, or two names are of one part.
    """
    check_known(entries, parts)
    _check_apart(entries, parts)
    pieces: dict[str, list[SparseEntry]] = {}
    for name, entry in entries.items():
        part = parts[name]
        whole_shape = part.whole_shape(entry.shape)
        if whole_shape is None:
            raise _wrong_shape(name, entry.shape)
        check_shape(name, whole_shape)
        indices, values = _in_other_order(entry) if part.swapped else (entry.indices, entry.values)
        piece = SparseEntry(indices + part.begin(entry.shape), values, whole_shape)
        pieces.setdefault(part.name, []).append(piece)
    return {name: _joined(name, of_weight) for name, of_weight in pieces.items()}


def to_diffusers(entries: Mapping[str, SparseEntry], parts: Mapping[str, Part]) -> dict[str, SparseEntry]:
    """Entries by ComfyUI's names → entries by diffusers names; parts in which nothing changes are left out.

    Raises DeltaError if a weight has no part in `parts`, or a shape cannot be divided into its parts.
    """
    of_weight: dict[str, list[str]] = {}
    for diffusers_name, part in parts.items():
        of_weight.setdefault(part.name, []).append(diffusers_name)
    check_known(entries, of_weight)
    pieces = {piece: _piece(entry, parts[piece]) for name, entry in entries.items() for piece in of_weight[name]}
    return {name: piece for name, piece in pieces.items() if len(piece.indices)}


def dense_to_comfy(tensor: torch.Tensor, part: Part) -> torch.Tensor:
    """A diffusers tensor with its rows as they stand in the part of ComfyUI's weight; of the same shape and dtype."""
    return torch.cat(tensor.chunk(2)[::-1]) if part.swapped else tensor


def dense_to_diffusers(whole: torch.Tensor, part: Part) -> torch.Tensor:
    """A diffusers tensor, [rows of the part, …], out of ComfyUI's weight; it may be a view of that."""
    if part.whole == 1 and not part.swapped:
        return whole
    unit = whole.shape[0] // part.whole
    rows = whole[unit * part.first : unit * (part.first + part.size)]
    return torch.cat(rows.chunk(2)[::-1]) if part.swapped else rows


def _check_apart(names: Iterable[str], parts: Mapping[str, Part]) -> None:
    """Raise DeltaError, naming both, if two names stand for the same rows of a weight."""
    seen: dict[tuple[str, int], str] = {}
    for name in names:
        part = parts[name]
        for row in range(part.first, part.first + part.size):
            if (part.name, row) in seen:
                raise DeltaError(
                    f"'{seen[part.name, row]}' and '{name}' are both '{part.name}' in ComfyUI, and only one of the "
                    "changes would arrive. Make the file anew, or leave one of them out."
                )
            seen[part.name, row] = name


def _piece(entry: SparseEntry, part: Part) -> SparseEntry:
    shape = part.part_shape(entry.shape)
    if shape is None:
        raise _wrong_shape(part.name, entry.shape)
    begin = part.begin(shape)
    bounds = torch.tensor([begin, begin + math.prod(shape)], dtype=torch.int64, device=entry.indices.device)
    first, end = torch.searchsorted(entry.indices, bounds).tolist()
    piece = SparseEntry(entry.indices[first:end] - begin, entry.values[first:end], shape)
    return piece._replace(**dict(zip(("indices", "values"), _in_other_order(piece)))) if part.swapped else piece


def _in_other_order(entry: SparseEntry) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (increasing again) and values after the two halves of the weight changed places."""
    half = entry.numel // 2
    low = int(torch.searchsorted(entry.indices, half))
    indices = torch.cat([entry.indices[low:] - half, entry.indices[:low] + half])
    return indices, torch.cat([entry.values[low:], entry.values[:low]])


def _joined(name: str, pieces: list[SparseEntry]) -> SparseEntry:
    if len(pieces) == 1:
        return pieces[0]
    if len({piece.shape for piece in pieces}) != 1:
        raise DeltaError(f"The parts of '{name}' do not fit together: give the base model that the file was made for.")
    pieces = sorted(pieces, key=lambda piece: piece.indices[:1].tolist())
    values = torch.cat([piece.values for piece in pieces])
    entry = SparseEntry(torch.cat([piece.indices for piece in pieces]), values, pieces[0].shape)
    check_entry(name, entry)
    return entry


def _wrong_shape(name: str, shape: Shape) -> DeltaError:
    return DeltaError(
        f"'{name}' cannot have the shape {list(shape)} in a model of this family: give the base model that the file "
        "was made for."
    )
