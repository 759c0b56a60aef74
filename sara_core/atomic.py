"""Writing a file so that a crash, a full disk or a killed process never leaves half of it under its name."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import DeltaError

_REMEDIES = {
    errno.ENOSPC: "the disk is full. Free some space there or choose another folder, then save again",
    errno.EDQUOT: "the disk quota is used up. Free some space there or choose another folder, then save again",
    errno.EROFS: "the disk is read-only. Choose another folder",
    errno.EACCES: "writing there is not allowed, or the file is in use. Choose another folder or name",
    errno.EPERM: "writing there is not allowed. Choose another folder",
    errno.ENOENT: "the folder does not exist. Create it or choose another one",
    errno.ENOTDIR: "its folder is not a folder. Choose another one",
    errno.EISDIR: "it is the name of a folder. Choose another name",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one",
}


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A new binary file that takes the place of `path` once the block has ended without an exception.

    It is written beside `path`, flushed to the disk, then renamed over it; otherwise it is removed and `path` is as
    it was. Raises DeltaError, with a remedy, where the system refuses to write.
    """
    path = Path(path)
    # Hidden, and no .safetensors ending: a host that lists the folder must not offer a half-written file.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _flush_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        remedy = _REMEDIES.get(error.errno, f"{error.strerror or error}. Choose another folder or name")
        raise DeltaError(f"'{path}' could not be saved: {remedy}. What was there before is unchanged.") from error


def _flush_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut; Windows does so by itself and cannot open a folder."""
    if os.name != "posix":
        return
    # Some network file systems cannot flush a folder; the file is in place and complete all the same.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
