"""Where the delta of a run that was stopped goes: beside whatever has the name that a finished one would get."""

import contextlib
import itertools
from pathlib import Path

from ..delta import SparseDelta
from ..errors import NameTakenError
from ..files.run_name import numbered


def save_under_a_free_name(delta: SparseDelta, target: Path) -> Path:
    """Write to `target` or, if anything has that name, <target>_stopped, <target>_stopped_2 …: only a finished delta
    replaces another. Returns the file's path; raises DeltaError if it cannot be written."""
    for name in itertools.chain([target.stem], numbered(f"{target.stem}_stopped")):
        path = target.with_name(f"{name}{target.suffix}")
        with contextlib.suppress(NameTakenError):
            delta.save(path, overwrite=False)
            return path
    raise AssertionError("there is no end of names")
