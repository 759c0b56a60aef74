"""Writing a delta as a LoRA: the nearest matrix of a given rank to each layer's change, by singular values.

By the Eckart-Young theorem the first r singular vectors give the matrix of rank r that is nearest in the Frobenius
norm. What a LoRA cannot hold (biases, norms) goes into the same file as plain differences, which loses nothing, if the
program that the LoRA is for takes them.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ...delta import SparseDelta, modelspec
from ...delta.entry import dense
from ...errors import DeltaError
from ...files import atomic, container, disk
from ...foreign_text import NAME, plain
from ...numbers import checked
from ...tensors.elements import sum_of_squares
from ..formats import Writer
from ..own_names import OwnNames
from ..request import WriteRequest
from .diff import diff_name
from .lora_parts import LoraParts, layer_of, parts_of, squares_of
from .programs import COMFYUI, PROGRAMS

_STORED = torch.float16


class LoraWriter(Writer):
    """The nearest LoRA of at most the rank asked for, float16."""

    summary = "a LoRA, small but only near"
    readers = tuple(PROGRAMS)

    def write(self, delta: SparseDelta, path: Path, request: WriteRequest) -> str:
        """The report has the error of each layer, what was left out and why, and the error of all."""
        program = PROGRAMS[request.reader]
        metadata = modelspec.as_lora(delta.metadata)
        if request.reader == COMFYUI:
            entries, layout = delta.entries, program.layout(None)
        else:
            names = OwnNames(delta, request.base_path)
            layout = program.layout(names.family)
            entries = names.diffusers() if layout.in_diffusers_names else names.comfyui()
        parts = parts_of(entries, layout)
        left_out = parts.left_out_lines(program.title)
        if parts.is_empty:
            raise DeltaError(f"A LoRA of this delta for {program.title} would be empty. {' '.join(left_out)}")
        if not layout.is_recognised([layer_of(name) for name in parts.layers]):
            raise DeltaError(
                f"{program.title} would not see what this LoRA is for: the delta changes none of the layers that tell. "
                "Choose another program to write it for, or train some of the other layers too."
            )
        errors = write(path, parts, request.rank, metadata, request.on_progress, request.overwrite)
        lines = [f"{error:8.2%}  {plain(name, NAME)}" for name, error in errors.layers.items()]
        if layout.has_one_rank:
            lines.append(f"All layers have the rank {errors.rank}, filled up with zeros: one for all is needed.")
        lines += left_out
        overall = f"{errors.overall:8.2%}  relative error of the LoRA of rank {request.rank} over all changes"
        return "\n".join([*lines, overall])


@dataclass
class LoraErrors:
    """How far a LoRA is from the delta it was made of.

    layers: weight name → ‖Δ − LoRA‖ / ‖Δ‖ (Frobenius norms), of each layer that became one, as stored
    overall: the same over all changes of the delta, with those that were left out
    rank: of all layers, or of the one that has the highest
    """

    layers: Mapping[str, float]
    overall: float
    rank: int


def write(
    path: str | os.PathLike,
    parts: LoraParts,
    rank: int,
    metadata: Mapping[str, str],
    on_progress: Callable[[int, int], None] | None = None,
    overwrite: bool = True,
) -> LoraErrors:
    """Write a LoRA of at most this rank in float16.

    parts: as `parts_of` gives them
    on_progress: called with weights done and weights in all; may raise to stop

    Raises DeltaError for a rank below 1, if the disk has no room for a file of that rank, before any work, or if the
    file cannot be written; NameTakenError if it would replace something and must not.
    """
    rank = checked(rank, "The rank of a LoRA", 1, whole=True)
    disk.check_room(path, most_bytes(parts, rank), f"A LoRA of rank {rank}")
    tensors = {diff_name(name): dense(entry) for name, entry in parts.differences.items()}
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    layers: dict[str, float] = {}
    missed = squares_of(parts.left_out)
    changed = missed + squares_of(parts.differences)
    for done, (name, entry) in enumerate(parts.layers.items(), start=1):
        change = dense(entry)
        changed += (squares := sum_of_squares(change))
        up, down = pairs[layer_of(name)] = factors(change, rank)
        missed += (square := sum_of_squares(change.flatten(1) - up.float().flatten(1) @ down.float().flatten(1)))
        layers[name] = math.sqrt(square / squares)
        if on_progress is not None:
            on_progress(done, len(parts.layers))
    highest = max((len(down) for _, down in pairs.values()), default=0)
    layout = parts.layout
    for layer, (up, down) in pairs.items():
        if layout.has_one_rank:
            up, down = filled_up(up, down, highest)
        key = layout.key(layer)
        for factor, tensor in zip(layout.factors, (down, up)):
            tensors[f"{key}.{factor}.weight"] = tensor
        if layout.is_scaled:
            tensors[f"{key}.alpha"] = torch.tensor(float(len(down)))
    with atomic.writing(path, overwrite) as file:
        container.write(file, tensors, metadata)
    return LoraErrors(layers, math.sqrt(missed / changed) if changed else 0.0, highest)


def most_bytes(parts: LoraParts, rank: int) -> int:
    """What a LoRA of this rank takes on the disk; less where changes are of a lower rank than their number allows."""
    ranks = {
        name: min(rank, entry.shape[0], entry.numel // entry.shape[0], len(entry.indices))
        for name, entry in parts.layers.items()
    }
    if parts.layout.has_one_rank:
        ranks = dict.fromkeys(ranks, max(ranks.values(), default=0))
    sides = {name: entry.shape[0] + entry.numel // entry.shape[0] for name, entry in parts.layers.items()}
    differences = sum(4 * entry.numel for entry in parts.differences.values())
    return differences + sum(_STORED.itemsize * ranks[name] * sides[name] for name in ranks)


def filled_up(up: torch.Tensor, down: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same product by factors of a higher rank, whose further columns and rows are 0."""
    missing = rank - len(down)
    columns, rows = up.new_zeros(len(up), missing, *up.shape[2:]), down.new_zeros(missing, *down.shape[1:])
    return torch.cat([up, columns], dim=1), torch.cat([down, rows])


def factors(change: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """up [rows, r] and down [r, columns] (with the kernel's sides for a convolution), float16, for one change.

    change: floating point [rows, columns] or [rows, columns, *kernel], not all 0; r is `rank` or, where that is lower,
        the change's own
    """
    matrix = change.flatten(1).double()
    wide = matrix.shape[0] <= matrix.shape[1]
    # Eigenvectors of the smaller Gram matrix are the singular vectors of that side: several times faster than a full
    # decomposition, and in float64 exact enough for the largest ones, which are all that is kept.
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    squares, vectors = squares[-rank:].flip(0), vectors[:, -rank:].flip(1)
    real = squares > squares[0] * torch.finfo(torch.float64).eps
    singular, vectors = squares[real].sqrt(), vectors[:, real]
    # Each factor takes the root of the singular values, so that neither leaves float16's range.
    if wide:
        up, down = vectors * singular.sqrt(), (vectors.T @ matrix) / singular.sqrt()[:, None]
    else:
        up, down = (matrix @ vectors) / singular.sqrt(), vectors.T * singular.sqrt()[:, None]
    if change.dim() > 2:
        up, down = up.view(*up.shape, *[1] * (change.dim() - 2)), down.reshape(-1, *change.shape[1:])
    return up.to(_STORED), down.to(_STORED)
