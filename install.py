"""What ComfyUI Manager and the WebUIs run: says whether anything is missing. It never installs anything.

The WebUIs run it at every launch, so it only reads the installed versions and imports nothing heavy. Where the pack
cannot be imported it is asked too: then what is missing is the likely cause.
"""

import importlib.metadata
import re
import sys

NEEDED = {"torch": (2, 5), "numpy": (1, 25), "safetensors": (0, 4)}


def problem() -> str | None:
    """What is missing or too old and what to do, in one line; None when all is well."""
    found = []
    for name, minimum in NEEDED.items():
        wanted = ".".join(map(str, minimum))
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} is not installed ({wanted} or later is needed)")
            continue
        if _release(version) < minimum:
            found.append(f"{name} {version} is too old ({wanted} or later is needed)")
    if not found:
        return None
    return f"SaRA: {', '.join(found)}. ComfyUI or your WebUI brings it: update that, not the single package."


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.1.0+cu121 is (2, 1, 0)."""
    return tuple(int(part) for part in re.match(r"[0-9.]*", version).group().split(".") if part)


def main() -> int:
    found = problem()
    if found:
        print(found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
