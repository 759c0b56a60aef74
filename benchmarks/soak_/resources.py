"""What a server's process holds: memory, open files, threads. After a warm-up none of it may grow."""

from collections import deque
from pathlib import Path
from typing import NamedTuple

WARM_UP = 15
# The least of so many readings counts: memory comes and goes with the models that are loaded.
LAST = 5
MOST_MEMORY = 192  # MiB beyond the warm-up's most
MOST_FILES = 4
MOST_THREADS = 8  # pools of the host's grow to their size when they are needed


class Reading(NamedTuple):
    """memory: MiB that are the process's own, not mapped from files; files: paths and other things that are open,
    without sockets; mapped: files that are mapped into memory"""

    memory: float
    files: list[str]
    threads: int
    mapped: list[str]


def read(pid: int) -> Reading | None:
    """What a process holds now; None where the system does not tell (Linux does)."""
    process = Path("/proc", str(pid))
    try:
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
        mapped = {line.split(None, 5)[5] for line in (process / "maps").read_text().splitlines() if line.count("/")}
        files = list(filter(None, map(_target, (process / "fd").iterdir())))
        memory = int(status["RssAnon"].split()[0]) / 1024
        return Reading(memory, sorted(files), int(status["Threads"]), sorted(mapped))
    except (OSError, KeyError):
        return None


def _target(descriptor: Path) -> str | None:
    try:
        target = str(descriptor.readlink())
    except OSError:  # closed meanwhile
        return None
    return None if target.startswith("socket:") else target


class ProcessWatch:
    """The readings of one process.

    output: no file in its folders sara and sara_snapshots may stay open or mapped
    """

    def __init__(self, output: Path, warm_up: int = WARM_UP):
        self._own = [f"{output}/sara/", f"{output}/sara_snapshots/"]
        self._warm_up, self._last = warm_up, deque(maxlen=LAST)
        self._told: set[str] = set()
        self.readings: list[Reading] = []

    def wrong(self, reading: Reading) -> list[str]:
        """What is wrong with one more reading, beside those before."""
        warm = self.readings[: self._warm_up]
        self.readings.append(reading)
        self._last.append(reading.memory)
        held = {path for path in [*reading.files, *reading.mapped] if path.startswith(tuple(self._own))} - self._told
        self._told |= held  # once is enough
        lines = [f"the server holds {path} open" for path in sorted(held)]
        if len(warm) < self._warm_up:
            return lines
        most_files, most_threads = max(len(r.files) for r in warm), max(r.threads for r in warm)
        most_memory, memory = max(r.memory for r in warm), min(self._last)
        if len(reading.files) > most_files + MOST_FILES:
            new = sorted(set(reading.files) - set(warm[-1].files))
            lines.append(f"{len(reading.files)} open files after {most_files}, among them {new[:5]}")
        if reading.threads > most_threads + MOST_THREADS:
            lines.append(f"{reading.threads} threads after {most_threads}")
        if memory > most_memory + MOST_MEMORY:
            lines.append(f"{memory:.0f} MiB of memory after {most_memory:.0f}")
        return lines


class FolderWatch:
    """A folder in which only what is known of may be left."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._known: set[str] = set()

    def know(self, names: set[str]) -> None:
        self._known |= names

    def know_all(self) -> None:
        """Whatever is there now."""
        self._known |= self._names()

    def wrong(self) -> list[str]:
        """A line for each name that is new; told once."""
        new = self._names() - self._known
        self._known |= new
        return [f"{name} is left in {self.folder.name}" for name in sorted(new)]

    def _names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
