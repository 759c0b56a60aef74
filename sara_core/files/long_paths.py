"""Windows says of a path that is too long for it that it does not exist, which sends people looking for a file that is
there."""

import os
from pathlib import Path

IS_WINDOWS = os.name == "nt"
# Characters, of programs and systems in which long paths are not switched on (MAX_PATH without the ending zero).
LONGEST = 259


def remedy(path: Path) -> str | None:
    """What to do if `path`, which was not found, is too long; None if it is not."""
    length = len(str(path.absolute()))
    if not IS_WINDOWS or length <= LONGEST:
        return None
    return (
        f"its path has {length} characters, and Windows finds none of more than {LONGEST}. Take a folder with a "
        "shorter path, or switch long paths on (Enable Win32 long paths)"
    )
