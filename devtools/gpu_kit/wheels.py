"""Python packages for another machine, as a folder that PYTHONPATH names there: nothing is installed, so pip is not
needed, and a package of the machine's own stays as it is."""

import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from ..prepared import pip
from ..progress import Progress

# Each name for systems as old as a wheel may ask for: pip takes only what is named.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# ComfyUI imports both wherever it loads a model.
COMFYUI_OWN = (
    "comfy-aimdo==0.4.11",  # dynamic VRAM
    "comfy-kitchen==0.2.26",  # quantised weights
)
# Kernels in fp8, fp4 and int8, 45 MB of them, which no measurement of a kit calls; without them it takes torch's.
COMPILED = ("comfy_kitchen/", (".so", ".cuh"))


def add_packages(pinned: Iterable[str], python: str, site: Path, progress: Progress) -> None:
    """Unpack the wheels of pinned packages into `site`, without their dependencies.

    python: the other machine's version, as "3.12". Raises HostError if one is not to be had.
    """
    progress.say(f"downloading wheels for Python {python}")
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-") as downloads:
        options = ["--no-deps", "--only-binary=:all:", "--python-version", python, "-d", downloads]
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        pip(Path(sys.executable), ["download", *options, *platforms, *pinned], progress)
        for wheel in sorted(Path(downloads).glob("*.whl")):
            unpack(wheel, site)


def unpack(wheel: Path, site: Path) -> None:
    """A wheel's modules, and its metadata, by which others find its version."""
    folder, suffixes = COMPILED
    with zipfile.ZipFile(wheel) as packed:
        for name in packed.namelist():
            if not (name.startswith(folder) and name.endswith(suffixes)):
                packed.extract(name, site)


def files(site: Path) -> list[str]:
    """All that lies in the folder."""
    return [file.relative_to(site).as_posix() for file in site.rglob("*") if file.is_file()]
