"""All formats by name: what deltas are made of, and what they are written in."""

from collections.abc import Collection

from ..delta.file_v1 import is_delta
from .adapters.reader import AdapterReader
from .dense.diff import DiffWriter
from .dense.svd_lora import LoraWriter
from .foreign_file import ForeignFile
from .formats import Reader, Writer
from .peft import plain_name
from .remedies import MIXED, UNKNOWN, Remedies
from .sara import SaraReader, SaraWriter
from .sparse.lt_sft import LtSftReader, WholeWeightsReader
from .sparse.sara_authors import SaraAuthorsReader
from .sparse.shira import ShiraReader, ShiraWriter
from .sparse.super_tuning import HybridReader, SuperTuningReader
from .whole_model import ModelReader

# The later one stands here, the sooner it is asked: what is more general comes first, and a format that somebody adds
# goes before all of ours.
READERS: dict[str, Reader] = {
    "model": ModelReader(),
    "adapter": AdapterReader(),
    "lt-sft with whole weights": WholeWeightsReader(),
    "lt-sft": LtSftReader(),
    "super-tuning with a lora": HybridReader(),
    "super-tuning": SuperTuningReader(),
    "shira": ShiraReader(),
    "sara-authors": SaraAuthorsReader(),
    "sara": SaraReader(),
}
# By the names that people choose them by.
WRITERS: dict[str, Writer] = {
    "sara": SaraWriter(),
    "diff": DiffWriter(),
    "lora": LoraWriter(),
    "shira": ShiraWriter(),
}
OWN = "sara"


def in_order() -> list[Reader]:
    """All readers in the order in which they are asked."""
    return list(reversed(READERS.values()))


def recognised(file: ForeignFile) -> Reader | None:
    """The reader of the file's format; None if it is of none that is known."""
    return next((reader for reader in in_order() if reader.recognises(file)), None)


def files_in_folders() -> list[str]:
    """What the one file may be called in a folder that stands for it."""
    return list(dict.fromkeys(name for reader in in_order() for name in reader.files_in_folder))


def format_names() -> list[str]:
    """What deltas are made of, as lists for people call it: "SaRA", "SHiRA" …"""
    return list(dict.fromkeys(name for reader in in_order() for name in reader.names))


def advice(names: Collection[str], remedies: Remedies) -> str:
    """For someone who tried to load a file as a delta: what it seems to be, and what to do with it.

    names: of all its tensors
    """
    if is_delta(names):
        return remedies[MIXED]
    names = {plain_name(name)[0] for name in names}
    signs = (sign for reader in in_order() for sign in reader.signs if sign.is_in(names))
    if (sign := next(signs, None)) is None:
        return remedies[UNKNOWN]
    return f"It looks like {sign.what}. {remedies[sign.remedy]}"
