"""Writing deltas in formats of others."""

import os
from collections.abc import Callable
from pathlib import Path

from ..delta import SparseDelta, modelspec
from ..delta.translate import to_diffusers
from ..errors import DeltaError
from ..models.base import opened_base
from ..names.diffusers import diffusers_parts
from ..names.resolve import prefix_of
from .dense import diff, svd_lora
from .sparse import shira

FORMATS = ("sara", "diff", "lora", "shira")
DEFAULT_RANK = 64


def write(
    delta: SparseDelta,
    path: str | os.PathLike,
    to: str,
    base: str | os.PathLike | None = None,
    rank: int = DEFAULT_RANK,
    on_progress: Callable[[int, int], None] | None = None,
    overwrite: bool = True,
) -> str:
    """Write the delta to `path` in one of FORMATS; returns a report for people, one line for each thing.

    sara: our own, everything bit for bit
    diff: dense float32 differences, which Load LoRA of any ComfyUI loads
    lora: the nearest LoRA of at most `rank`, float16; the report has its error for each layer
    shira: a folder that PEFT loads; the report has what it cannot hold. `base` tells the names of models whose layers
        alone do not
    Raises DeltaError if the delta cannot be written so; NameTakenError if it would replace something and must not.
    """
    if not delta.entries:
        raise DeltaError("The delta changes nothing: there is nothing to write.")
    if to == "sara":
        delta.save(path, overwrite=overwrite)
        return f"Saved {delta.nnz:,} changes as '{Path(path).name}'."
    if to in ("diff", "lora") and Path(path).suffix.lower() != ".safetensors":
        raise DeltaError(f"'{Path(path).name}': the file's name must end in .safetensors.")
    if to == "diff":
        diff.write(path, delta.entries, modelspec.as_lora(delta.metadata), overwrite)
        return f"Saved '{Path(path).name}': {Path(path).stat().st_size / 1e6:,.0f} MB of dense differences."
    if to == "lora":
        metadata = modelspec.as_lora(delta.metadata)
        return _lora_report(svd_lora.write(path, delta.entries, rank, metadata, on_progress, overwrite), rank)
    if to == "shira":
        return _write_shira(delta, path, base, overwrite)
    raise DeltaError(f"There is no format '{to}'. Choose one of {', '.join(FORMATS)}.")


def _lora_report(errors: svd_lora.LoraErrors, rank: int) -> str:
    lines = [f"{error:8.2%}  {name}" for name, error in errors.layers.items()]
    overall = f"{errors.overall:8.2%}  relative error of the LoRA of rank {rank} over all changes"
    return "\n".join([*lines, overall])


def _write_shira(
    delta: SparseDelta, folder: str | os.PathLike, base: str | os.PathLike | None, overwrite: bool
) -> str:
    prefix = prefix_of(delta.entries)
    entries = {name.removeprefix(prefix): entry for name, entry in delta.entries.items()}
    shapes = {name: entry.shape for name, entry in entries.items()}
    if base is not None:
        with opened_base(base) as opened:
            shapes = opened.shapes
    if parts := diffusers_parts(shapes):
        entries = to_diffusers(entries, parts)
    left_out = set(shira.write(folder, entries, overwrite))
    squares = {name: float(entry.values.double().square().sum()) for name, entry in entries.items()}
    lost = sum(squares[name] for name in left_out) / (sum(squares.values()) or 1.0)
    lines = [f"Saved {len(entries) - len(left_out)} Linear layers for PEFT in '{Path(folder).name}'."]
    if left_out:
        lines.append(
            f"Left out, because SHiRA holds Linear layers only: {len(left_out)} other parameters with {lost:.2%} of "
            "the squared change."
        )
    return "\n".join(lines)
