"""A disk that can be full without anybody else's being so."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

SIZE = 320 * 2**20
FILLER = ".filler"
_NEW_MOUNTS, _RECURSIVE, _PRIVATE, _DETACH = 0x20000, 0x4000, 0x40000, 2


def mounted_on(folder: Path) -> bool:
    """Put a small disk in memory (tmpfs) on a folder, seen by this process and its children only and gone with them.

    False where that takes rights or a system that are not there; the folder is then as it was.
    """
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return False
    system = ctypes.CDLL(None, use_errno=True)
    if system.unshare(_NEW_MOUNTS) or system.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None):
        return False
    return system.mount(b"sara-soak", os.fsencode(folder), b"tmpfs", 0, f"size={SIZE}".encode()) == 0


def taken_off(folder: Path) -> None:
    """Remove the small disk from a folder, with all that is on it."""
    ctypes.CDLL(None).umount2(os.fsencode(folder), _DETACH)


@contextlib.contextmanager
def filled(folder: Path, left: int) -> Iterator[None]:
    """The disk of a folder with so many bytes left, as long as the block lasts."""
    filler = folder / FILLER
    try:
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free_bytes(folder) - left))
        yield
    finally:
        filler.unlink(missing_ok=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """No name can be added to a folder or to those in it, as long as the block lasts; not for the super-user."""
    inside = [place for place in [folder, *folder.rglob("*")] if place.is_dir() and not place.is_symlink()]
    try:
        for place in inside:
            place.chmod(0o555)
        yield
    finally:
        for place in inside:
            place.chmod(0o755)


def free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
