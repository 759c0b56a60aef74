"""Delta files with a number behind each, as `merge` and `bake` take them: style.safetensors=0.6."""

import argparse
import math
from pathlib import Path
from typing import NamedTuple

from ..delta import SparseDelta
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
            number = float(weight)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise argparse.ArgumentTypeError(f"'{weight}' in '{text}' is no number: write FILE=0.6")
        return cls(Path(path), number)

    def load(self) -> SparseDelta:
        """The delta in the file; raises DeltaError if it is none."""
        return load_delta(self.path)
