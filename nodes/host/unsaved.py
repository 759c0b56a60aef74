"""Trainings that have come to their end and that nobody has saved yet: each is on the disk, whatever happens meanwhile.

A finished delta is written to output/sara/unsaved before the run's snapshots go. The copy stays until that very delta
has been saved, or, where nothing can save it any more, until a later run of this process has its own copy. Of the runs
that were stopped, the last few keep their delta and snapshots; of those that were finished, one to train on from.
What other processes have left there is theirs, or the user's, and so is what somebody has changed, or has under another
name.
"""

import contextlib
import weakref
from dataclasses import dataclass
from pathlib import Path

from ...sara_core.delta import SparseDelta
from ...sara_core.training.snapshot import RunSnapshots
from . import folders


MOST_STOPPED = 10
MOST_FINISHED = 3


class _OwnFile:
    """A file that this process has written, which is not removed once somebody has changed or replaced it."""

    def __init__(self, path: Path):
        self.path, self.written = path, folders.fingerprint(path)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            if folders.fingerprint(self.path) == self.written:
                self.path.unlink()


@dataclass
class _Unsaved:
    """delta: what a run gave, as long as anything can still save it; files: what is kept of the run meanwhile
    is_copy: whether these are the delta's copy, or the run's snapshots because there could be none"""

    delta: weakref.ref
    files: list[_OwnFile]
    is_copy: bool

    def remove(self) -> None:
        for file in self.files:
            file.remove()
        _unsaved.remove(self)


_unsaved: list[_Unsaved] = []
# Run → what it left when it was stopped, or its last snapshot when it was finished; the latest one at the end.
_stopped: dict[str, list[_OwnFile]] = {}
_finished: dict[str, list[_OwnFile]] = {}


def keep_copy(delta: SparseDelta, run: str) -> Path:
    """Write the copy of a finished run of that name, after which its snapshots may go; returns the copy's path.

    Raises DeltaError if it cannot be written: keep_snapshots is the next best.
    """
    path = folders.save_own(delta, folders.UNSAVED, run)
    for earlier in [earlier for earlier in _unsaved if earlier.is_copy and earlier.delta() is None]:
        earlier.remove()
    _unsaved.append(_Unsaved(weakref.ref(delta), [_OwnFile(path)], is_copy=True))
    return path


def keep_snapshots(delta: SparseDelta, snapshots: RunSnapshots) -> None:
    """Let the run's snapshots stay until the delta has been saved, in this process; for ever if it is not."""
    files = [_OwnFile(path) for path in snapshots.existing()]
    _unsaved.append(_Unsaved(weakref.ref(delta), files, is_copy=False))


def keep_stopped(delta: SparseDelta, run: str, snapshots: RunSnapshots) -> Path:
    """Write what a stopped run of that name has trained to output/sara; returns the file's path.

    Of the runs that this process has stopped, what the last MOST_STOPPED have left stays: delta and snapshots.
    Raises DeltaError if it cannot be written.
    """
    path = folders.save_own(delta, folders.FOLDER, f"{folders.STOPPED}_{run}")
    _note(_stopped, run, [path, *snapshots.existing()], MOST_STOPPED)
    return path


def keep_last_snapshot(run: str, snapshots: RunSnapshots) -> None:
    """Let what a finished run of that name has left stay, to be trained on. Of the runs that this process has finished,
    the snapshots of the last MOST_FINISHED stay."""
    _note(_finished, run, snapshots.existing(), MOST_FINISHED)


def keep_so_far(delta: SparseDelta, run: str, step: int) -> Path:
    """Write what a run of that name has trained up to a step, for whoever asked for it; returns the file's path.

    Raises DeltaError if it cannot be written.
    """
    return folders.save_own(delta, folders.UNSAVED, f"{run}_step{step}")


def _note(kept: dict[str, list[_OwnFile]], run: str, paths: list[Path], most: int) -> None:
    kept[run] = [*kept.pop(run, ()), *map(_OwnFile, paths)]
    for earlier in list(kept)[:-most]:
        for file in kept.pop(earlier):
            file.remove()


def run_of(delta: SparseDelta) -> str | None:
    """The name of the run that gave a delta which nobody has saved yet, as its copy is called; None for others."""
    copies = (entry.files[0].path.stem for entry in _unsaved if entry.is_copy and entry.delta() is delta)
    return next(copies, None)


def saved(delta: SparseDelta) -> Path | None:
    """To be called once a delta is in place as a file of its own: what was kept of its run goes. Returns where its copy
    was; None if it had none."""
    copies = [entry.files[0].path for entry in _unsaved if entry.is_copy and entry.delta() is delta]
    for entry in [entry for entry in _unsaved if entry.delta() is delta]:
        entry.remove()
    return copies[0] if copies else None
