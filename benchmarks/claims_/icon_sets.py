"""The pictures that the paper's claims are tried on: six icon sets from npm, which share most of their names.

They are fetched when first needed with the ordinary npm client, or taken from the folder that SARA_ICONS names, where
the packages lie as npm packs them. Each package is pinned by its digest; nothing of them is part of this project.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SCOPE = "@iconify-json"
FOLDER_VARIABLE = "SARA_ICONS"


class NoIconsError(Exception):
    """The icon sets are not to be had; the message says what to do."""


@dataclass(frozen=True)
class IconSet:
    """A package of SVG pictures: name, version, SHA-256 of what npm packs, and the licence of the pictures."""

    name: str
    version: str
    sha256: str
    licence: str
    by: str

    @property
    def archive(self) -> str:
        """The file's name, as ``npm pack`` gives it."""
        return f"{SCOPE[1:]}-{self.name}-{self.version}.tgz"


NOTO = IconSet(
    "noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad", "Apache-2.0", "Google",
)  # fmt: skip
TWEMOJI = IconSet(
    "twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7", "CC-BY-4.0", "Twitter",
)  # fmt: skip
OPENMOJI = IconSet(
    "openmoji", "1.2.29", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5", "CC-BY-SA-4.0",
    "OpenMoji",
)  # fmt: skip
FLUENT = IconSet(
    "fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175", "MIT",
    "Microsoft",
)  # fmt: skip
FXEMOJI = IconSet(
    "fxemoji", "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef", "Apache-2.0", "Mozilla",
)  # fmt: skip
EMOJIONE = IconSet(
    "emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e", "CC-BY-4.0", "Emoji One",
)  # fmt: skip
ALL = (NOTO, TWEMOJI, OPENMOJI, FLUENT, FXEMOJI, EMOJIONE)
BY_NAME = {icons.name: icons for icons in ALL}


def archive(icons: IconSet, cache_folder: Path) -> Path:
    """The packed icon set: from SARA_ICONS, or fetched into `cache_folder`.

    Raises NoIconsError if it is not to be had, or is not the pinned one.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    path = Path(named or cache_folder) / icons.archive
    if not path.is_file():
        if named:
            raise NoIconsError(f"There is no {icons.archive} in the folder that {FOLDER_VARIABLE} names.")
        _fetch(icons, cache_folder)
    if hashlib.sha256(path.read_bytes()).hexdigest() != icons.sha256:
        raise NoIconsError(f"{path} is not {icons.name} {icons.version} as it was published: remove it and try again.")
    return path


def _fetch(icons: IconSet, folder: Path) -> None:
    npm = shutil.which("npm")
    remedy = f"Install npm with internet access, or put {icons.archive} into a folder and set {FOLDER_VARIABLE} to it."
    if npm is None:
        raise NoIconsError(f"The icons of the claims come as npm packages, and there is no npm. {remedy}")
    folder.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", "--silent", f"{SCOPE}/{icons.name}@{icons.version}"]
    if subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL).returncode:
        raise NoIconsError(f"npm could not fetch {SCOPE}/{icons.name} {icons.version}. {remedy}")


@cache
def drawings(icons: IconSet, cache_folder: Path) -> dict[str, str]:
    """Name ("dog-face") → SVG text of every picture of a set, aliases left out."""
    with tarfile.open(archive(icons, cache_folder)) as packed:
        content = json.load(packed.extractfile("package/icons.json"))
    size = content.get("width", 16), content.get("height", 16)
    return {name: _svg(icon, *size) for name, icon in content["icons"].items()}


def _svg(icon: dict, width: int, height: int) -> str:
    left, top = icon.get("left", 0), icon.get("top", 0)
    box = f"{left} {top} {icon.get('width', width)} {icon.get('height', height)}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{box}">{icon["body"]}</svg>'
