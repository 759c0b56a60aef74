"""What somebody asks of a reading or a writing, and what every format needs to answer it."""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from ..delta import SparseDelta, SparseEntry
from ..delta import metadata as keys
from ..errors import DeltaError
from ..extraction.largest_changes import Kept, keep_largest
from ..models.base import Base, opened_base
from ..wording import capitalised
from .remedies import Remedies
from .result import Conversion

DEFAULT_RANK = 64

Progress = Callable[[int, int], None]


@dataclass
class ReadRequest:
    """A reading of one file, which a reader has recognised.

    called: what a person calls a file of its format; label: the file's name
    base_path: of the model that it was made for, if one was given
    density: share of the base's elements to keep; None keeps every change
    on_progress: called with steps done and steps in all; may raise to stop
    remedies: what people can do, in their words; reading: of an adapter's numbers, one of adapters.readings.READINGS
    open_until_read: closes what it has opened when the reading is over
    """

    called: str
    label: str
    base_path: str | os.PathLike | None
    density: float | None
    on_progress: Progress | None
    remedies: Remedies
    reading: str
    open_until_read: contextlib.ExitStack

    @functools.cached_property
    def base(self) -> Base | None:
        """The base, open until the reading is over; None if none was given. Raises DeltaError if it is no model."""
        if self.base_path is None:
            return None
        return self.open_until_read.enter_context(opened_base(self.base_path))

    def keep_largest(
        self, changes: Callable[[], Iterable[tuple[str, torch.Tensor]]], number: int, elements: int | None = None
    ) -> Kept:
        """keep_largest() at the density asked for, telling how far it is.

        changes: as it takes them, `number` of them each of the three times that it may ask
        elements: that the density is a share of; by default the base's
        """
        done, steps = 0, 3 * number

        def counted() -> Iterator[tuple[str, torch.Tensor]]:
            nonlocal done
            for change in changes():
                yield change
                done += 1
                tell(done, steps)

        tell = self.on_progress or (lambda done, total: None)
        kept = keep_largest(counted, self.density, self.base.elements if elements is None else elements)
        if done < steps:  # a reading that was not needed counts as done
            tell(steps, steps)
        return kept

    def made(
        self, entries: Mapping[str, SparseEntry], lost: float = 0.0, metadata: Mapping[str, str] | None = None
    ) -> Conversion:
        """The delta of what the file changes, with the record of its making.

        entries: by ComfyUI's names with the prefix; those without a change are left out
        lost: share of the squared changes that is not in them; metadata: what is known of the delta beside the record
        Raises DeltaError if there is no change at all, or an entry that is not sound.
        """
        entries = {name: entry for name, entry in entries.items() if len(entry.indices)}
        if not entries:
            raise DeltaError(f"'{self.label}' changes nothing: there is no delta to make of it.")
        family = {keys.FAMILY: self.base.family} if self.base is not None and self.base.family else {}
        record = {"from": self.called, "density": self.density, "lost": lost}
        metadata = {**(metadata or {}), **family, keys.CONVERTED: json.dumps(record)}
        return Conversion(SparseDelta(entries, metadata), capitalised(self.called), lost)


@dataclass
class WriteRequest:
    """A writing of one delta.

    base_path: of the model that the delta is for, if one was given: it tells the names of models that the delta's own
        names do not tell
    rank: of a LoRA; on_progress: called with steps done and steps in all; may raise to stop
    overwrite: whether what is there under the name is replaced
    reader: the program that is to load the file, a key of dense.programs.PROGRAMS
    """

    base_path: str | os.PathLike | None
    rank: int
    on_progress: Progress | None
    overwrite: bool
    reader: str
