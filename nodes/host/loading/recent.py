"""Deltas that were read from files a moment ago, so that another strength, or going back to a file, reads nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path

import comfy.model_management
import torch

from ....sara_core.delta import SparseDelta
from .. import folders

# Of deltas that are not asked for any more, read as they are: one of 50 M changes, or a dozen of 5 M.
MOST_BYTES = 512 * 2**20
# Nor more than this part of the memory that is free.
_PART_OF_FREE = 8


class RecentDeltas:
    """The deltas that were asked for last, however large, and of those before them the newest within MOST_BYTES."""

    def __init__(self, read: Callable[[Path], SparseDelta]):
        """read: makes the delta of a file"""
        self._read = read
        # (path, fingerprint) → delta, the newest last.
        self._kept: dict[tuple[Path, str], SparseDelta] = {}

    def load(self, paths: Sequence[Path]) -> list[SparseDelta]:
        """The deltas of these files, each read unless it was a moment ago and has not changed since."""
        wanted = [(path, folders.fingerprint(path)) for path in paths]
        # What must go goes before the new ones take memory.
        self._forget_all_but(wanted)
        for key in wanted:
            self._kept[key] = self._kept.pop(key, None) or self._read(key[0])
        return [self._kept[key] for key in wanted]

    def _forget_all_but(self, wanted: Sequence[tuple[Path, str]]) -> None:
        paths = {path for path, _ in wanted}
        room = min(MOST_BYTES, comfy.model_management.get_free_memory(torch.device("cpu")) // _PART_OF_FREE)
        for key, delta in reversed(list(self._kept.items())):
            if key in wanted:
                continue
            room -= _bytes(delta)
            # An older version of a file that is wanted is nobody's any more.
            if room < 0 or key[0] in paths:
                del self._kept[key]


def _bytes(delta: SparseDelta) -> int:
    return sum(entry.indices.nbytes + entry.values.nbytes for entry in delta.entries.values())
