"""Making deltas of foreign files, which are recognised by what is in them."""

import contextlib
import os
from pathlib import Path

from ..errors import DeltaError
from ..files import container
from ..numbers import checked
from ..wording import one_of
from .adapters.readings import READINGS, TRAINED
from .foreign_file import opened_foreign
from .registry import files_in_folders, format_names, recognised
from .remedies import BASE, LIBRARY, Remedies
from .request import Progress, ReadRequest
from .result import Conversion


def read_delta(
    path: str | os.PathLike,
    base: str | os.PathLike | None = None,
    density: float | None = None,
    on_progress: Progress | None = None,
    remedies: Remedies = LIBRARY,
    reading: str = TRAINED,
) -> Conversion:
    """The delta in a file or folder of any known format: see docs/conversion.md.

    base: the model that the file belongs to, a diffusers folder or a `.safetensors` file; most formats need it
    density: share of the base's elements to keep, for files that change every element
    on_progress: called with steps done and steps in all; may raise to stop
    remedies: what the errors tell people to do
    reading: of adapters that ComfyUI shows otherwise than they were trained: "trained", or "comfyui" for what it shows
    Raises DeltaError for files of an unknown format, damaged ones, and bases that do not fit.
    """
    if reading not in READINGS:
        raise DeltaError(f"There is no reading '{reading}'. Choose {one_of(READINGS)}.")
    if density is not None:
        density = checked(density, "The density", above=0, most=1)
    path = Path(path)
    path = next((path / name for name in files_in_folders() if os.path.isfile(path / name)), path)
    if not (os.path.isdir(path) or os.path.isfile(path)):
        if os.path.lexists(path):
            raise container.not_ordinary(path)
        raise DeltaError(f"The file '{path}' does not exist. Choose another one, or put it there again.")
    try:
        with contextlib.ExitStack() as open_until_read:
            file = open_until_read.enter_context(opened_foreign(path))
            reader = recognised(file)
            if reader is None:
                raise file.unreadable or _unknown(path)
            request = ReadRequest(
                reader.called, path.name, base, density, on_progress, remedies, reading, open_until_read
            )
            if density is not None and not reader.takes_density:
                raise DeltaError(f"'{path.name}' is sparse already and loses nothing: leave the density out.")
            if reader.needs_base and request.base is None:
                raise DeltaError(
                    f"{reader.title} ('{path.name}') can only be converted beside the base model that it was made "
                    f"for: {remedies[BASE]}"
                )
            return reader.read(file, request)
    except OSError as error:
        raise DeltaError(f"'{path.name}' cannot be read ({error.strerror or error}). Check its permissions.") from error


def _unknown(path: Path) -> DeltaError:
    return DeltaError(
        f"'{path.name}' is nothing that can be converted: neither a delta or adapter ({', '.join(format_names())}) nor "
        "a model in .safetensors files."
    )
