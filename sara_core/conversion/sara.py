"""Our own format, which keeps everything: deltas in as they are, and out."""

from pathlib import Path

from ..delta import SparseDelta
from ..delta.file_v1 import is_delta
from ..wording import capitalised
from .foreign_file import ForeignFile
from .formats import Reader, Writer
from .remedies import MIXED
from .request import ReadRequest, WriteRequest
from .result import Conversion


class SaraReader(Reader):
    """A delta file. It is not made anew: entries and metadata are its own."""

    called = "a SaRA delta"
    names = ("SaRA",)
    needs_base = False

    def recognises(self, file: ForeignFile) -> bool:
        """By the names of its tensors; one of a newer version too, which the reading then refuses in words."""
        return file.is_safetensors and is_delta(file.names)

    def read(self, file: ForeignFile, request: ReadRequest) -> Conversion:
        """The delta, as SparseDelta.load gives it."""
        delta = SparseDelta.load(file.path, lambda names: request.remedies[MIXED], request.on_progress)
        return Conversion(delta, capitalised(self.called))


class SaraWriter(Writer):
    """A delta file with float32 values."""

    summary = "everything, bit for bit"

    def write(self, delta: SparseDelta, path: Path, request: WriteRequest) -> str:
        """As SparseDelta.save does."""
        delta.save(path, overwrite=request.overwrite)
        return f"Saved {delta.nnz:,} changes as '{path.name}'."
