"""Which family a model's file is of, and how large it is, told by its header alone."""

import os
from pathlib import Path

from ..errors import DeltaError
from ..files import header
from ..files.source import model_files
from ..names.outline import Outline, outline_of
from ..names.stored import loaded_names

# Weights of these have the shapes of the model; others are packed, and their shapes say something else.
_NOT_PACKED = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}


def family_of_file(path: str | os.PathLike) -> str | None:
    """The family, in people's words, of a checkpoint or a diffusion model in a .safetensors file; None where that
    cannot be told: for a family that is not known, a quantised model, another kind of file. Reads no tensor."""
    outline = outline_of_file(path)
    return outline and outline.family


def outline_of_file(path: str | os.PathLike) -> Outline | None:
    """The same of family and size, also of a diffusers folder; None for a quantised model and for other files."""
    shapes = {}
    try:
        for file in model_files(Path(path)) if os.path.isdir(path) else [path]:
            found = header.read(file)
            if any(len(one["shape"]) > 1 and one["dtype"] not in _NOT_PACKED for one in found.tensors.values()):
                return None
            shapes.update(found.shapes())
    except DeltaError:
        return None
    model = outline_of({name: shapes[stored] for name, stored in loaded_names(shapes).items()})
    return model if model.trainable else None
