"""Which family a model's file is of, told by its header alone."""

import os

from ..errors import DeltaError
from ..files import header
from ..names.families import family_of
from ..names.stored import loaded_names

# Weights of these have the shapes of the model; others are packed, and their shapes say something else.
_NOT_PACKED = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}


def family_of_file(path: str | os.PathLike) -> str | None:
    """The family, in people's words, of a checkpoint or a diffusion model in a .safetensors file; None where that
    cannot be told: for a family that is not known, a quantised model, another kind of file. Reads no tensor."""
    try:
        found = header.read(path)
        if any(len(one["shape"]) > 1 and one["dtype"] not in _NOT_PACKED for one in found.tensors.values()):
            return None
        shapes = found.shapes()
        known = family_of({name: shapes[stored] for name, stored in loaded_names(shapes).items()}, whole=True)
    except DeltaError:
        return None
    return None if known is None else known.name
