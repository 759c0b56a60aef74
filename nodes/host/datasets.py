"""Folders of training pictures: those that a node is given, and those that the page may look into and write to."""

import os
from collections.abc import Iterator
from pathlib import Path

import folder_paths

from ...sara_core.data.dataset import MOST_REPEATS, Share
from ...sara_core.data.listing import Listing, list_folder
from ...sara_core.errors import TrainingError
from ...sara_core.files.names import check_name, check_path
from ...sara_core.foreign_text import NAME, plain
from ...sara_core.wording import Sentence

# Of the input folder, and no more than anybody looks through.
MOST_FOLDERS, DEEPEST = 1000, 6
_REPEATS = "|"


def shares(text: str) -> list[Share]:
    """The folders that are named in a text, one a line, each perhaps with its repeats: "dog | 3".

    A name is of a folder inside ComfyUI's input folder, or a whole path. Raises TrainingError if there is none, one
    leads out of the input folder or is not there, or one is there twice.
    """
    found = [_share(line.strip()) for line in text.splitlines() if line.strip()]
    if not found:
        raise TrainingError(Sentence(
            "There is no folder of pictures: drop pictures on the node, or write the name of a folder inside ComfyUI's "
            "input folder into folders."
        ))  # fmt: skip
    if len({os.path.realpath(share.folder) for share in found}) < len(found):
        raise TrainingError(
            Sentence("A folder stands twice in folders: write it once, and behind it how often: dog | 2.")
        )
    return found


def _share(line: str) -> Share:
    name, _, repeats = map(str.strip, line.rpartition(_REPEATS))
    if not (name and repeats.isdecimal() and repeats.isascii()):
        return Share(_folder(line))
    if len(repeats) > len(str(MOST_REPEATS)) or not 1 <= int(repeats) <= MOST_REPEATS:
        raise TrainingError(
            Sentence("The repeats of {name} must be from 1 to {most}.", name=_shown(name), most=MOST_REPEATS)
        )
    return Share(_folder(name), int(repeats))


def _folder(name: str) -> Path:
    path = Path(folder_paths.get_input_directory(), name)
    try:
        # Links inside of the input folder may lead anywhere: whoever made them could.
        if not os.path.isabs(name) and not Path(os.path.abspath(path)).is_relative_to(_input()):
            raise TrainingError(Sentence(
                "{name} leads out of ComfyUI's input folder: give a folder inside, or a path.", name=_shown(name)
            ))  # fmt: skip
        if path.is_dir():
            return path
    except (OSError, ValueError):  # a name that no folder can have
        pass
    if os.path.isabs(name):
        key = "There is no folder {name}: choose another one, or drop pictures on the node."
    else:
        key = "There is no folder {name} in ComfyUI's input folder: choose another one, or drop pictures on the node."
    raise TrainingError(Sentence(key, name=_shown(name)))


def open_folder(name: object) -> Path:
    """The folder of this name, inside the input folder wherever its links lead, for the page to work on.

    Raises TrainingError for every other one.
    """
    try:
        root = input_folder()
        path = (root / str(name)).resolve()
        if path != root and path.is_relative_to(root) and path.is_dir():
            return path
    except (OSError, ValueError, RuntimeError):  # a name that no folder can have, links that go round in circles
        pass
    if os.path.isabs(str(name)):
        raise TrainingError(Sentence(
            "{name} is not shown: the gallery has ComfyUI's input folder only. A run takes others, too.",
            name=_shown(name),
        ))  # fmt: skip
    raise TrainingError(Sentence(
        "There is no folder {name} in ComfyUI's input folder: choose another one, or drop pictures here.",
        name=_shown(name),
    ))  # fmt: skip


def open_picture(folder: Path, name: object) -> tuple[Path, Listing]:
    """A picture of this name in a folder from `open_folder`, and what else is there. Raises TrainingError if there is
    none, or it is a link to somewhere else."""
    listing = list_folder(folder)
    for picture, _ in listing.images:
        if picture.name == name and _stays_inside(picture):
            return picture, listing
    raise TrainingError(Sentence("There is no picture {name} in this folder any more.", name=_shown(name)))


def check_inside(path: Path) -> None:
    """Raise TrainingError for a file that is a link out of the input folder."""
    if not _stays_inside(path):
        raise TrainingError(Sentence(
            "{name} is a link out of ComfyUI's input folder, which is not followed.", name=_shown(path.name)
        ))  # fmt: skip


def _stays_inside(path: Path) -> bool:
    try:
        return path.resolve().is_relative_to(input_folder())
    except (OSError, RuntimeError):
        return False


def new_folder(name: object) -> str:
    """Make a folder inside the input folder, unless it is there; returns its name as `folder_names` has it.

    Raises TrainingError, or DeltaError for a name that no folder can have, if it cannot be made.
    """
    named = name if isinstance(name, str) else ""
    parts = [part.strip() for part in named.replace("\\", "/").split("/") if part.strip()]
    if not parts or len(parts) > DEEPEST:
        raise TrainingError(Sentence("Give the new folder a name, like my_dog."))
    for part in parts:
        check_name(part, f"The name {_shown(part)}")
    path = _input().joinpath(*parts)
    check_path(path, "The new folder")
    check_inside(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(Sentence(
            "The folder {name} cannot be made ({why}).", name=_shown(name), why=error.strerror or str(error)
        )) from error  # fmt: skip
    return "/".join(parts)


def folder_names() -> list[str]:
    """Names of the folders inside the input folder, and inside these, by name, with forward slashes; links and hidden
    ones left out."""
    root, found = _input(), []
    for folder, inside, _ in os.walk(root):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        parts = Path(folder).relative_to(root).parts
        if len(parts) >= DEEPEST:
            inside.clear()
        if parts:
            found.append("/".join(parts))
        if len(found) >= MOST_FOLDERS:
            break
    return sorted(found)


def fingerprint(text: str) -> str:
    """Changes whenever a picture or caption in one of the folders does; empty for folders that are none."""
    try:
        return "\n".join(line for share in shares(text) for line in _versions(Path(share.folder)))
    except TrainingError:
        return ""


def _versions(folder: Path) -> Iterator[str]:
    for pair in list_folder(folder).images:
        for path in filter(None, pair):
            try:
                status = path.stat()
            except OSError:
                continue
            yield f"{path} {status.st_mtime_ns} {status.st_size}"


def input_folder() -> Path:
    """ComfyUI's input folder, wherever links to it lead."""
    return _input().resolve()


def _input() -> Path:
    return Path(os.path.abspath(folder_paths.get_input_directory()))


def _shown(name: object) -> str:
    return f"'{plain(name, NAME)}'"
