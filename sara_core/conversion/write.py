"""Writing deltas in our own format and in those of others."""

import os
from pathlib import Path

from ..delta import SparseDelta
from ..errors import DeltaError
from ..numbers import checked
from .dense.programs import COMFYUI, PROGRAMS
from .registry import WRITERS
from .request import DEFAULT_RANK, Progress, WriteRequest


def write_delta(
    delta: SparseDelta,
    path: str | os.PathLike,
    to: str,
    base: str | os.PathLike | None = None,
    rank: int = DEFAULT_RANK,
    on_progress: Progress | None = None,
    overwrite: bool = True,
    reader: str = COMFYUI,
) -> str:
    """Write the delta to `path`, a file or folder, and return a report for people, one line for each thing.

    to: the format, one of registry.WRITERS; docs/conversion.md has what each keeps and loses
    base: tells the names of models whose layers alone do not
    rank: of a LoRA; on_progress: called with steps done and steps in all; may raise to stop
    reader: the program that is to load the file, one of dense.programs.PROGRAMS; there is a choice for LoRAs only
    Raises DeltaError if the delta cannot be written so; NameTakenError if it would replace something and must not.
    """
    path, rank = Path(path), checked(rank, "The rank of a LoRA", 1, whole=True)
    if not delta.entries:
        raise DeltaError("The delta changes nothing: there is nothing to write.")
    if to not in WRITERS:
        raise DeltaError(f"There is no format '{to}'. Choose one of {', '.join(WRITERS)}.")
    writer = WRITERS[to]
    _check_reader(reader, to)
    if writer.ending and path.suffix.lower() != writer.ending:
        raise DeltaError(f"'{path.name}': the file's name must end in {writer.ending}.")
    return writer.write(delta, path, WriteRequest(base, rank, on_progress, overwrite, reader))


def _check_reader(reader: str, to: str) -> None:
    if reader not in PROGRAMS:
        raise DeltaError(f"LoRAs for '{reader}' are not known. Choose one of {', '.join(PROGRAMS)}.")
    if reader != COMFYUI and reader not in WRITERS[to].readers:
        formats = " or ".join(f"'{name}'" for name, writer in WRITERS.items() if reader in writer.readers)
        raise DeltaError(f"The format '{to}' is not written for {PROGRAMS[reader].title}. Choose {formats}.")
