"""Delta files with a number behind each, as `merge` and `bake` take them: style.safetensors=0.6."""

import argparse
from pathlib import Path
from typing import NamedTuple

from ..delta import SparseDelta
from ..errors import DeltaError
from ..numbers import read
from .remedies import load_delta


class WeightedFile(NamedTuple):
    """A delta file and its weight; 1 where none is given."""

    path: Path
    weight: float

    @classmethod
    def parse(cls, text: str) -> "WeightedFile":
        """FILE or FILE=WEIGHT."""
        path, _, weight = text.rpartition("=")
        if not path or Path(text).is_file():  # a name may have an equals sign of its own
            return cls(Path(text), 1.0)
        try:
            return cls(Path(path), read(weight, "it"))
        except DeltaError as error:
            raise argparse.ArgumentTypeError(
                f"'{weight}' in '{text}' is no number that float32 can hold: write FILE=0.6"
            ) from error

    def load(self) -> SparseDelta:
        """The delta in the file; raises DeltaError if it is none."""
        return load_delta(self.path)
