"""Tuned models, whose difference from the base is a delta."""

from ..extraction.extract import extract_with_report
from ..files.source import model_files
from ..models.base import opened_base
from ..names.resolve import CHECKPOINT_PREFIX, WEIGHT
from .foreign_file import ForeignFile
from .formats import Reader, Sign
from .remedies import MODEL
from .request import ReadRequest
from .result import Conversion


class ModelReader(Reader):
    """A checkpoint, a diffusion model, or a diffusers folder: whatever has weights and is nothing more particular."""

    called = "a whole model"
    signs = (
        Sign(
            "a whole checkpoint", MODEL, beginnings=(CHECKPOINT_PREFIX, "first_stage_model.", "cond_stage_model.")
        ),
        Sign("the weights of a model", MODEL, endings=(WEIGHT,)),
    )
    takes_density = True

    def recognises(self, file: ForeignFile) -> bool:
        """By weights in a safetensors file, or a folder's files. Raises DeltaError if some of those are missing."""
        if file.path.is_dir():
            return bool(model_files(file.path))
        return file.is_safetensors and any(name.endswith(WEIGHT) for name in file.names)

    def read(self, file: ForeignFile, request: ReadRequest) -> Conversion:
        """The largest differences from the base, or all of them."""
        base = request.base
        with opened_base(file.path) as tuned:
            # As files, the comparison also tells what differs in their other parts.
            as_files = not (base.is_diffusers or tuned.is_diffusers)
            models = (request.base_path, file.path) if as_files else (base.weights(), tuned.weights())
            delta, report = extract_with_report(*models, density=request.density, on_progress=request.on_progress)
        conversion = request.made(delta.entries, max(0.0, 1 - report.squared_share), delta.metadata)
        conversion.notes.append(report.text())
        return conversion
