"""What people at the command line can do about a file that is not taken as it is."""

from pathlib import Path

from ..conversion.registry import advice
from ..conversion.remedies import ADAPTER, BASE, CONVERT, MIXED, MODEL, UNKNOWN, Remedies
from ..delta import SparseDelta

_CONVERT = "Make a delta of it first: python -m sara_core convert IN OUT --base BASE."
REMEDIES: Remedies = {
    ADAPTER: _CONVERT,
    CONVERT: _CONVERT,
    MODEL: "Make a delta of it first: python -m sara_core extract BASE TUNED OUT.",
    MIXED: "Get the delta in a file of its own from where it came from.",
    UNKNOWN: "Give a file that train, extract, merge or convert of python -m sara_core has written.",
    BASE: "give it, a checkpoint or a diffusers folder, as --base.",
}


def load_delta(path: Path) -> SparseDelta:
    """The delta in a file. Raises DeltaError, with the command to use instead, if it is none."""
    return SparseDelta.load(path, lambda names: advice(names, REMEDIES))
