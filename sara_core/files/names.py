"""Whether a file can have a name, asked before the work whose result it is for."""

import os
from pathlib import PurePath

from ..errors import DeltaError

IS_WINDOWS = os.name == "nt"
# Bytes of one name, in UTF-8; on Windows units of UTF-16. Of a whole path, where Windows has another limit.
LONGEST, LONGEST_PATH = 255, 4095
# A file is written under a longer name first (atomic.replacing): ".", ".01234567.tmp".
BESIDE = 14
_NOT_ON_WINDOWS = '<>:"|?*\\/'
_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    f"{kind}{number}" for kind in ("COM", "LPT") for number in "0123456789¹²³"
}


def check_name(name: str, what: str) -> None:
    """Raise DeltaError unless a file, or folder, of this name can be made on this system, and be seen.

    name: without a folder; what: what people call it where it came in, at the beginning of a sentence
    """
    if fault := _fault(name):
        raise DeltaError(f"{what} {fault}. Choose another one.")


def check_path(path: str | os.PathLike, what: str) -> None:
    """As `check_name`, for the name at the end of a path, whose folder is there, and for the length of the whole."""
    check_name(PurePath(path).name, what)
    if not IS_WINDOWS and len(os.fsencode(os.path.abspath(path))) + BESIDE > LONGEST_PATH:
        raise DeltaError(f"{what} lies in too many folders for this system. Choose a shorter one.")


def _fault(name: str) -> str | None:
    if not _is_text(name) or any(letter < " " or letter == "\x7f" for letter in name):
        return "holds what no file's name can have (a control character, or half a letter)"
    if not name.strip(". "):
        return "names no file: it is empty, or dots alone"
    if name.startswith("."):
        return "begins with a dot, which makes a hidden file"
    length = len(name.encode("utf-16-le")) // 2 if IS_WINDOWS else len(name.encode())
    if length + BESIDE > LONGEST:
        return f"is too long: with what is added to it, it has {length + BESIDE} bytes, and a name {LONGEST} at most"
    if not IS_WINDOWS:
        return None
    if odd := [letter for letter in name if letter in _NOT_ON_WINDOWS]:
        return f"holds {odd[0]}, which Windows allows in no name"
    if name.endswith((".", " ")):
        return "ends with a dot or a space, which Windows takes away"
    if name.split(".")[0].strip().upper() in _DEVICES:
        return "is the name of a device on Windows"
    return None


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
