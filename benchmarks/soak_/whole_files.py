"""Whether all that lies in the output folder is whole, and nothing half-written is left."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from sara_core import SparseDelta
from sara_core.errors import SaRAError
from sara_core.training import snapshot

from .odd_files import BEGINNING, ENDING
from .promises import SNAPSHOTS, digest
from .small_disk import FILLER

# What is written beside a file while it is being written, and the mark of a run that is going on.
_UNFINISHED = (".tmp", ".lock")


class WholeFiles:
    """Looks at all files of an output folder, at those that it has seen whole only if they have changed."""

    def __init__(self, output: Path):
        self.output = output
        self._whole: dict[Path, str] = {}
        self._left_by_killed: set[Path] = set()
        self._told: set[str] = set()

    def server_was_killed(self) -> None:
        """What is unfinished now stays for ever, and is nobody's fault."""
        self._left_by_killed.update(path for path in self._files() if path.name.endswith(_UNFINISHED))

    def wrong(self) -> list[str]:
        """A line for each file that is not as it should be, while no server is at work; told once."""
        found = ((path.relative_to(self.output).as_posix(), self._wrong_with(path)) for path in self._files())
        lines = [line for name, text in found if text and (line := f"{name} {text}") not in self._told]
        self._told.update(lines)
        return lines

    def _files(self) -> list[Path]:
        """Without those that the soak has put there itself."""
        paths = (path for path in self.output.rglob("*") if not path.name.startswith((BEGINNING, FILLER)))
        return sorted(path for path in paths if path.is_file() and not path.is_symlink())

    def _wrong_with(self, path: Path) -> str:
        if path.name.endswith(_UNFINISHED):
            return "" if path in self._left_by_killed else "is left over"
        if path.stat().st_size == 0:
            return "is empty"
        if path.suffix != ENDING or self._whole.get(path) == (found := digest(path)):
            return ""
        try:
            self._read(path)
        except (SaRAError, SafetensorError, OSError, KeyError) as error:
            return f"cannot be read: {error}"
        self._whole[path] = found
        return ""

    def _read(self, path: Path) -> None:
        folder = path.relative_to(self.output).parts[0]
        if folder == "sara":
            SparseDelta.load(path)
        elif folder == SNAPSHOTS:
            state, _ = snapshot.load(path)
            state["step"], state["store"]
        else:
            with safe_open(path, "pt") as file:
                for name in file.keys():
                    file.get_tensor(name).view(-1)


def contents(path: Path) -> str:
    """A digest of what a delta changes and by what, whatever else is said in its file."""
    found = hashlib.sha256()
    for name, entry in sorted(SparseDelta.load(path).entries.items()):
        found.update(name.encode())
        for tensor in (entry.indices, entry.values):
            found.update(tensor.contiguous().view(torch.uint8).numpy())
    return found.hexdigest()
