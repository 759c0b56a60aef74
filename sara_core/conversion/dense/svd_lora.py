"""Writing a delta as a LoRA: the nearest matrix of a given rank to each layer's change, by singular values.

By the Eckart-Young theorem the first r singular vectors give the matrix of rank r that is nearest in the Frobenius
norm. What a LoRA cannot hold (biases, norms) goes into the same file as plain differences, which loses nothing.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ...delta import SparseDelta, SparseEntry, modelspec
from ...delta.entry import dense
from ...files import atomic, container
from ...foreign_text import NAME, plain
from ...names.resolve import PREFIX, WEIGHT
from ...numbers import checked
from ...tensors.elements import sum_of_squares
from ..formats import Writer
from ..request import WriteRequest
from .diff import diff_name, host_names

_STORED = torch.float16


class LoraWriter(Writer):
    """The nearest LoRA of at most the rank asked for, float16."""

    summary = "a LoRA, small but only near"

    def write(self, delta: SparseDelta, path: Path, request: WriteRequest) -> str:
        """The report has the error of each layer, and of all."""
        metadata = modelspec.as_lora(delta.metadata)
        errors = write(path, delta.entries, request.rank, metadata, request.on_progress, request.overwrite)
        lines = [f"{error:8.2%}  {plain(name, NAME)}" for name, error in errors.layers.items()]
        overall = f"{errors.overall:8.2%}  relative error of the LoRA of rank {request.rank} over all changes"
        return "\n".join([*lines, overall])


@dataclass
class LoraErrors:
    """How far a LoRA is from the delta it was made of.

    layers: weight name → ‖Δ − LoRA‖ / ‖Δ‖ (Frobenius norms), of each layer that became one, as stored
    overall: the same over all changes of the delta
    """

    layers: Mapping[str, float]
    overall: float


def write(
    path: str | os.PathLike,
    entries: Mapping[str, SparseEntry],
    rank: int,
    metadata: Mapping[str, str],
    on_progress: Callable[[int, int], None] | None = None,
    overwrite: bool = True,
) -> LoraErrors:
    """Write a LoRA of at most this rank in float16, under names that ComfyUI and the WebUIs know.

    entries: by ComfyUI's weight names, with any of the known prefixes or none
    on_progress: called with weights done and weights in all; may raise to stop

    Raises DeltaError for a rank below 1, or if the file cannot be written; NameTakenError if it would replace something
    and must not.
    """
    rank = checked(rank, "The rank of a LoRA", 1, whole=True)
    tensors: dict[str, torch.Tensor] = {}
    layers: dict[str, float] = {}
    missed = changed = 0.0
    for done, (name, entry) in enumerate(host_names(entries).items()):
        change = dense(entry)
        squares = sum_of_squares(change)
        changed += squares
        if name.endswith(WEIGHT) and change.dim() > 1 and squares:
            module = "lora_unet_" + name.removeprefix(PREFIX).removesuffix(WEIGHT).replace(".", "_")
            up, down = factors(change, rank)
            tensors |= {
                f"{module}.lora_up.weight": up,
                f"{module}.lora_down.weight": down,
                f"{module}.alpha": torch.tensor(float(down.shape[0])),
            }
            error = change.flatten(1) - up.float().flatten(1) @ down.float().flatten(1)
            missed += (square := sum_of_squares(error))
            layers[name] = math.sqrt(square / squares)
        else:
            tensors[diff_name(name)] = change
        if on_progress is not None:
            on_progress(done + 1, len(entries))
    with atomic.writing(path, overwrite) as file:
        container.write(file, tensors, metadata)
    return LoraErrors(layers, math.sqrt(missed / changed) if changed else 0.0)


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
