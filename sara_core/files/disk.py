"""Whether there is room on a disk for what is about to be written, asked before the work."""

import os
import shutil
from pathlib import Path

from ..errors import DeltaError
from ..wording import readable_size


def free_bytes(path: str | os.PathLike) -> int | None:
    """How much may still be written where a file of this path would be, whose folder need not exist yet; None where
    the system does not say."""
    place = Path(os.path.abspath(path)).parent
    while not os.path.isdir(place) and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def check_room(path: str | os.PathLike, needed: int, what: str) -> None:
    """Raise DeltaError if less than `needed` bytes are free where `path` is to be written.

    what: what takes them, at the beginning of a sentence
    """
    free = free_bytes(path)
    if free is not None and free < needed:
        raise DeltaError(
            f"{what} takes {readable_size(needed)}, and where '{path}' is to be, {readable_size(free)} are free. Free "
            "some space there or choose another folder."
        )
