"""The name of a run, which no other living process has, whatever works in the same folder.

A hidden, empty file in the run's folder marks the name, and a lock on it, which the system releases when the process
ends however it does, says that the run lives. A mark that a killed process has left is nobody's.
"""

import contextlib
import errno
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

if os.name == "nt":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


# What the systems say of a lock that somebody has; anything else means that this file system knows none.
_BUSY = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
# How often a mark may be taken away between two looks at it.
_ATTEMPTS = 5


@contextlib.contextmanager
def reserved(
    folder: str | os.PathLike, resumed: str | None, names: Iterable[str], is_taken: Callable[[str], bool]
) -> Iterator[str]:
    """A name for a run, which is nobody else's as long as the block lasts.

    folder: where the run's snapshots go; made if it does not exist
    resumed: the name that the run had before, or None; given up if its run may be living in another process
    names: others to choose from, without end; is_taken: whether a run of that name has left files
    """
    name, mark = _chosen(Path(folder), resumed, names, is_taken)
    try:
        yield name
    finally:
        if mark is not None:
            mark.release()


def numbered(name: str) -> Iterator[str]:
    """<name>, <name>_2, <name>_3 … without end."""
    return itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))


class _Mark(NamedTuple):
    """A marked name: the file, and a descriptor of it that has the lock."""

    path: Path
    descriptor: int

    def release(self) -> None:
        # Windows removes no open file; elsewhere nobody may lock a file that is about to go.
        if os.name == "nt":
            os.close(self.descriptor)
        with contextlib.suppress(OSError):
            self.path.unlink()
        if os.name != "nt":
            os.close(self.descriptor)


def _chosen(
    folder: Path, resumed: str | None, names: Iterable[str], is_taken: Callable[[str], bool]
) -> tuple[str, _Mark | None]:
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if resumed is not None and (mark := _mark(folder, resumed)):
            return resumed, mark
    for name in names:
        if is_taken(name):
            continue
        try:
            mark = _mark(folder, name)
        except OSError:  # then no run can leave a snapshot there, either
            return name, None
        if mark is not None:
            if not is_taken(name):
                return name, mark
            mark.release()  # another process had the name and has ended since
    raise AssertionError("there is no end of names")


def _mark(folder: Path, name: str) -> _Mark | None:
    """None if a living process has the name, or may have it. OSError if no file can be made in the folder."""
    path = folder / f".{name}.lock"
    for _ in range(_ATTEMPTS):
        descriptor, is_new = _opened(path)
        if descriptor is None:
            continue
        try:
            _lock(descriptor)
            is_ours = True
        except OSError as error:
            is_ours = is_new and error.errno not in _BUSY
        if is_ours and _is_at(path, descriptor):
            return _Mark(path, descriptor)
        os.close(descriptor)
        if not is_ours:
            return None
    return None


def _opened(path: Path) -> tuple[int | None, bool]:
    """A descriptor, or None if there is something that cannot be opened; and whether the file was made now."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        with contextlib.suppress(OSError):
            return os.open(path, os.O_RDWR), False
    return None, False


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether a file is still there, and has not been removed by the process that had it before."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False
