"""What was promised of files: nothing that was saved, kept or left vanishes or changes."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sara_core.training.snapshot import file_name, run_of

SNAPSHOTS = "sara_snapshots"
# What the log says: of a finished delta that is not saved yet, of one that was stopped, of the snapshot to go on from.
_UNTIL_SAVED = re.compile(r"until it is saved, the delta is in output/(\S+\.safetensors)")
_STOPPED = re.compile(r"What was trained in \d+ steps is in output/(\S+\.safetensors)")
_SNAPSHOT = re.compile(r"choose 'run (\d+), step (\d+)' under resume")
# Beside those: that there is nothing to keep, or that it could not be kept.
_TOLD = re.compile(f"{_UNTIL_SAVED.pattern}|training ended early|finished delta could not be kept on the disk")


@dataclass
class _Kept:
    """why: for the violation; life: of the server's that may remove it once a later training of it is finished; None if
    nobody may"""

    digest: str
    why: str
    life: str | None


def unsaved_in(log: str) -> list[str]:
    """The copies of finished deltas that a log tells of, relative to the output folder."""
    return _UNTIL_SAVED.findall(log)


def told_in(log: str) -> int:
    """Of how many trainings a log tells what became of them."""
    return len(_TOLD.findall(log))


class Promises:
    """The files of an output folder that must be there, by their names relative to it."""

    def __init__(self, output: Path):
        self.output = output
        self._kept: dict[str, _Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, name: str, why: str, life: str | None = None) -> list[str]:
        """A file was promised, or a folder with all in it; returns what is wrong with that at once."""
        path = self.output / name
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            return [f"{name} ({why}) is not there"]
        for file in files:
            self._kept[file.relative_to(self.output).as_posix()] = _Kept(digest(file), why, life)
        return []

    def keep_what_the_log_tells(self, log: str, life: str, saved: bool) -> list[str]:
        """life: the server's; saved: whether what it trained has been saved by now, so that no copy is needed"""
        wrong = []
        if copies := unsaved_in(log):
            for name in [name for name, kept in self._kept.items() if kept.life == life]:
                del self._kept[name]  # a later training has its own copy
        for name in copies:
            if not saved:
                wrong += self.keep(name, "a finished training, not saved yet", life)
            elif (self.output / name).exists():
                wrong.append(f"{name} is still there, although the delta has been saved")
        for name in _STOPPED.findall(log):
            wrong += self.keep(name, "a stopped training")
        for run, step in _SNAPSHOT.findall(log):
            name = file_name(f"run_{int(run):05}", int(step))
            wrong += self.keep(f"{SNAPSHOTS}/{name}", "the snapshot to go on from")
        return wrong

    def life_ended(self, life: str) -> None:
        """What a server would have removed later is left."""
        for kept in self._kept.values():
            if kept.life == life:
                kept.life = None

    def resumed(self, snapshot: str) -> None:
        """A run goes on, which removes its snapshots when it has later ones or is finished."""
        run = run_of(snapshot)
        for name in [name for name in self._kept if name.startswith(f"{SNAPSHOTS}/") and run_of(name) == run]:
            del self._kept[name]

    def take_back(self, names: Iterable[str]) -> None:
        """The person deletes these files."""
        for name in names:
            self._kept.pop(name, None)

    def broken(self) -> list[str]:
        """What is wrong with the files now; each of it is told once."""
        wrong = []
        for name, kept in list(self._kept.items()):
            path = self.output / name
            if not path.is_file():
                wrong.append(f"{name} ({kept.why}) has vanished")
            elif digest(path) != kept.digest:
                wrong.append(f"{name} ({kept.why}) has changed")
            else:
                continue
            del self._kept[name]
        return wrong


_digests: dict[tuple, str] = {}


def digest(path: Path) -> str:
    """Of a file's bytes, which fit into memory; read again only once the system says that the file was written to."""
    status = path.stat()
    written = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    if written not in _digests:
        _digests[written] = hashlib.sha256(path.read_bytes()).hexdigest()
    return _digests[written]
