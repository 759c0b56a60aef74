"""Writing a file so that a crash, a full disk or a killed process never leaves half of it under its name; and, where
that is wanted, so that it never takes the place of another, whoever writes to the folder at the same time."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import DeltaError, NameTakenError
from . import long_paths
from .names import check_path

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


def writing(path: str | os.PathLike, overwrite: bool) -> contextlib.AbstractContextManager[BinaryIO]:
    """`replacing` where what is under the name may go, otherwise `creating`."""
    return replacing(path) if overwrite else creating(path)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A new binary file that takes the place of `path` once the block has ended without an exception.

    It is written beside `path`, flushed to the disk, then renamed over it; otherwise it is removed and `path` is as
    it was. Raises DeltaError, with a remedy, where the system refuses to write, and for what is no ordinary file: a
    device would be gone.
    """
    path = Path(path)
    temporary = _temporary(path)
    _check_replaceable(path)
    with errors_in_words(path), _removed_afterwards(temporary):
        with open(temporary, "xb") as file:
            yield file
            _flush(file)
        os.replace(temporary, path)
        _flush_folder(path.parent)


def check_writable(path: str | os.PathLike) -> None:
    """Raise DeltaError, with a remedy, where `replacing` could not even begin, or under a name that no file can have or
    that something other than a file has."""
    path = Path(path)
    check_path(path, f"The name '{path.name}'")
    _check_replaceable(path)
    temporary = _temporary(path)
    with errors_in_words(path), _removed_afterwards(temporary):
        open(temporary, "xb").close()


@contextlib.contextmanager
def creating(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """As `replacing`, but NameTakenError if there is anything under the name, at the beginning or at the end.

    The file that is written beside has the same name for everyone, so of several processes that want one name all but
    the first are told at once. One that a killed process has left keeps its name taken.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with errors_in_words(path):
        try:
            file = open(temporary, "xb")
        except FileExistsError:
            raise NameTakenError(
                f"'{path}' is being written by another program, or was when that was killed: take another name, or "
                f"remove '{temporary.name}'."
            ) from None
        with _removed_afterwards(temporary):
            with file:
                if os.path.lexists(path):
                    raise _taken(path)
                yield file
                _flush(file)
            try:
                _rename_to_free_name(temporary, path)
            except FileExistsError:
                raise _taken(path) from None
            _flush_folder(path.parent)


@contextlib.contextmanager
def errors_in_words(path: Path) -> Iterator[None]:
    """Raise DeltaError, with a remedy, where the system refuses inside what saving to `path` needs."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno, f"{error.strerror or error}. Choose another folder or name")
        if error.errno == errno.ENOENT:
            remedy = long_paths.remedy(_temporary(path)) or remedy
        raise DeltaError(f"'{path}' could not be saved: {remedy}. What was there before is unchanged.") from error


def _check_replaceable(path: Path) -> None:
    """Only a file is replaced: a device or a pipe would be gone, and a link to nothing is somebody's mistake."""
    with errors_in_words(path):
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if os.path.lexists(path) and not os.path.isfile(path):
        raise DeltaError(
            f"'{path}' is no ordinary file (a device, a pipe, a socket or a link to nothing), and is not replaced. "
            "Choose another name."
        )


def _temporary(path: Path) -> Path:
    # Hidden, and no .safetensors ending: a host that lists the folder must not offer a half-written file.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextlib.contextmanager
def _removed_afterwards(temporary: Path) -> Iterator[None]:
    """Whatever happens; there is nothing to remove once it has been renamed."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _taken(path: Path) -> NameTakenError:
    return NameTakenError(f"There is a '{path}' already, and nothing is overwritten: take another name.")


def _rename_to_free_name(temporary: Path, path: Path) -> None:
    """Raises FileExistsError if there is anything under the new name."""
    if os.name == "nt":  # where a rename never replaces
        os.rename(temporary, path)
        return
    try:
        os.link(temporary, path)
        return
    except FileExistsError:
        raise
    except OSError:  # exFAT and some network shares know no hard links: an empty file takes the name first
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    try:
        os.replace(temporary, path)
    except BaseException:
        os.unlink(path)
        raise


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


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
