"""The delta files of a WebUI, by the names that a prompt has for them."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sara_core.delta import file_v1
from sara_core.errors import DeltaError
from sara_core.files import header

# As many digits of a file's SHA-256 as WebUIs show of one.
_DIGITS = 12
_BLOCK = 1 << 20


class Stamp(NamedTuple):
    """What is another one as soon as a file is written anew."""

    changed: int
    size: int


def stamp(path: Path) -> Stamp | None:
    """None for a file that is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(status.st_mtime_ns, status.st_size)


class Shelf:
    """Files in folders, by their names without the ending, and by these behind their folders: "style", "people/ann".

    folders: those that are looked through, also within; of two files of one name, the first folder's
    """

    def __init__(self, folders: Callable[[], list[Path]]):
        self._folders = folders
        self._paths: dict[str, Path] = {}
        self._kinds: dict[Path, tuple[Stamp, bool]] = {}
        self._hashes: dict[Path, tuple[Stamp, str]] = {}

    def find(self, name: str) -> Path | None:
        """The file of a name; a delta or not. What was put there since the last look is found, too."""
        if name not in self._paths or stamp(self._paths[name]) is None:
            self._paths = self._looked_through()
        return self._paths.get(name)

    def deltas(self) -> dict[str, Path]:
        """Name → path of every file that is a delta, as far as its header says; each once, by its shortest name."""
        self._paths = self._looked_through()
        named: dict[Path, str] = {}
        for name, path in self._paths.items():
            named[path] = min(named.get(path, name), name, key=len)
        return {name: path for path, name in named.items() if self.is_delta(path)}

    def is_delta(self, path: Path) -> bool:
        """Whether a file's header is that of a delta, of whatever version."""
        now = stamp(path)
        if now is None or path.suffix.lower() != file_v1.SUFFIX:
            return False
        known = self._kinds.get(path)
        if known is None or known[0] != now:
            self._kinds[path] = known = (now, _looks_like_delta(path))
        return known[1]

    def short_hash(self, path: Path) -> str:
        """The first digits of a file's SHA-256; empty for one that cannot be read."""
        now = stamp(path)
        if now is None:
            return ""
        known = self._hashes.get(path)
        if known is None or known[0] != now:
            self._hashes[path] = known = (now, _sha256(path)[:_DIGITS])
        return known[1]

    def _looked_through(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for top in self._folders():
            for folder, inner, files in os.walk(top, followlinks=True):
                inner.sort()
                for file in sorted(files):
                    path = Path(folder, file)
                    if path.suffix.lower() == file_v1.SUFFIX:
                        found.setdefault(path.stem, path)
                        found.setdefault(path.relative_to(top).with_suffix("").as_posix(), path)
        return found


def _looks_like_delta(path: Path) -> bool:
    try:
        return file_v1.is_delta(header.read(path).tensors)
    except DeltaError:
        return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()
