"""OUT, the file or folder that a command writes, looked at before the command's work."""

import os
from pathlib import Path

from ..errors import DeltaError
from ..files import atomic, names


def check_target(target: str | os.PathLike, ending: str | None = None, is_folder: bool = False) -> None:
    """Raise DeltaError if no file can be made or replaced there, or its name has not this ending; or, where a command
    writes a folder, no folder made or filled."""
    path = Path(target)
    if not is_folder:
        if ending is not None and path.suffix.lower() != ending:
            raise DeltaError(f"'{path.name}': the file's name must end in {ending}.")
        atomic.check_writable(path)
        return
    names.check_path(path, f"The name '{path.name}'")
    if os.path.lexists(path) and not os.path.isdir(path):
        raise DeltaError(f"'{path}' is no folder, and is not replaced. Choose another name.")
