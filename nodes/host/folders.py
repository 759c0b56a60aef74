"""Where delta files are found and saved: models/sara and output/sara, both offered by the stock LoRA loaders too; and
where a training keeps its snapshots and pictures."""

import itertools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import folder_paths

from ...sara_core.delta import SparseDelta
from ...sara_core.errors import DeltaError, NameTakenError
from ...sara_core.files.names import check_name, check_path
from ...sara_core.files.run_name import numbered, reserved
from ...sara_core.training.snapshot import file_name, run_of
from ...sara_core.wording import Sentence

FOLDER = "sara"
UNSAVED = "sara/unsaved"
SAVED, NOT_SAVED, STOPPED = _KINDS = "saved", "unsaved", "stopped"
SNAPSHOTS = "sara_snapshots"
SAMPLES = "sara_samples"
ENDING = ".safetensors"
CHECKPOINTS, DIFFUSION_MODELS = "checkpoints", "diffusion_models"
_IN_MODELS = f"{DIFFUSION_MODELS}/"
# What packs for GGUF files call the diffusion models among them.
_GGUF = "unet_gguf"

_RUN = re.compile(r"run_([0-9]{1,18})(?![0-9])")  # the beginning of the names of all that a run leaves
# What a snapshot of such a run is called in the menu: no longer than a widget shows, and different from its beginning.
_IN_MENU = re.compile(r"run ([0-9]{1,18}), step ([0-9]{1,18})")
_OF_RUN = re.compile(r"run_([0-9]{5,18})_step([0-9]{7,18})\.safetensors")
_T = TypeVar("_T")


def register_folders() -> None:
    """Make both folders (and those of extra_model_paths.yaml) known to the host, under "sara" and under "loras"."""
    own = [os.path.join(folder_paths.models_dir, FOLDER), os.path.join(folder_paths.get_output_directory(), FOLDER)]
    for folder in own:
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            logging.warning("SaRA: the folder %s cannot be made (%s); put delta files elsewhere.", folder, error)
        folder_paths.add_model_folder_path(FOLDER, folder)
    folders = folder_paths.get_folder_paths(FOLDER)
    # A folder type that the host does not know accepts every ending unless told otherwise.
    folder_paths.folder_names_and_paths[FOLDER] = (folders, {ENDING})
    for folder in folders:
        folder_paths.add_model_folder_path("loras", folder)


def delta_names() -> list[str]:
    """Names of all delta files, relative to their folder, for a node's menu: what nobody has saved comes last."""
    return sorted(file_names(FOLDER), key=lambda name: _KINDS.index(kind_of(name)))


def delta_places() -> dict[str, Path]:
    """Name in the menu → the delta's path, in the menu's order; without those that are gone since it was made."""
    places = {name: folder_paths.get_full_path(FOLDER, name) for name in delta_names()}
    return {name: Path(path) for name, path in places.items() if path is not None}


def kind_of(name: str) -> str:
    """What a delta in the menu is, by its name: SAVED, NOT_SAVED (a finished training's) or STOPPED."""
    if name.replace(os.sep, "/").startswith(UNSAVED.removeprefix(f"{FOLDER}/") + "/"):
        return NOT_SAVED
    return STOPPED if name.startswith(f"{STOPPED}_run_") else SAVED


def file_names(kind: str) -> list[str]:
    """Names of all files of a kind of the host's ("checkpoints", "loras" …), for a node's menu."""
    try:
        return folder_paths.get_filename_list(kind)
    except OSError as error:  # the host looks at folders again that may be gone; a menu is no reason to lose a node
        logging.warning(f"SaRA: the files in the folders of '{kind}' cannot be listed ({error}).")
        return []


def delta_path(name: str) -> Path:
    """Path of a delta file by its name in the menu. Raises DeltaError if there is none."""
    return _existing(FOLDER, name, Sentence("models/sara or output/sara"))


def is_inside(path: Path) -> bool:
    """Whether a file lies, once all links are followed, among ComfyUI's models, in its output folder, or in a folder
    that `extra_model_paths.yaml` has for deltas."""
    real = os.path.realpath(path)
    places = (folder_paths.models_dir, folder_paths.get_output_directory(), *folder_paths.get_folder_paths(FOLDER))
    return any(real.startswith(os.path.join(os.path.realpath(place), "")) for place in places)


def model_names() -> list[str]:
    """Names of all checkpoints and diffusion-model files, for a node's menu; these with their folder where a checkpoint
    has the same name."""
    checkpoints = file_names(CHECKPOINTS)
    models = (_IN_MODELS + name if name in checkpoints else name for name in file_names(DIFFUSION_MODELS))
    return [*checkpoints, *models]


def checkpoint_and_model_names() -> list[str]:
    """The same files; all diffusion models with their folder, so that a name means one file for ever."""
    checkpoints = file_names(CHECKPOINTS)
    models = (_IN_MODELS + name for name in [*file_names(DIFFUSION_MODELS), *_gguf_names()])
    return [*checkpoints, *(name for name in models if name not in checkpoints)]


def _gguf_names() -> list[str]:
    """Names of the GGUF files among the diffusion models, as long as a pack that loads them is installed."""
    return file_names(_GGUF) if _GGUF in folder_paths.folder_names_and_paths else []


def is_diffusion_model(name: str) -> bool:
    """Whether a file in one of these menus is a diffusion-model file."""
    models = [*file_names(DIFFUSION_MODELS), *_gguf_names()]
    return name not in file_names(CHECKPOINTS) and (name in models or name.removeprefix(_IN_MODELS) in models)


def model_path(name: str) -> Path:
    """Path of a file by its name in one of these menus. Raises DeltaError if there is none."""
    where = Sentence("models/checkpoints or models/diffusion_models")
    if not is_diffusion_model(name):
        return _existing(CHECKPOINTS, name, where)
    plain = name if name in file_names(DIFFUSION_MODELS) else name.removeprefix(_IN_MODELS)
    return _existing(_GGUF if plain in _gguf_names() else DIFFUSION_MODELS, plain, where)


def save_new(paths: Iterable[Path], write: Callable[[Path], _T]) -> tuple[Path, _T]:
    """Write a file under the first of some names that is free, and stays so until it is complete.

    paths: names without end; write: writes a file there, or raises NameTakenError
    Returns the name and what `write` returned.
    """
    for path in paths:
        if not os.path.lexists(path):
            try:
                return path, write(path)
            except NameTakenError as error:
                logging.info(f"SaRA: the next name is taken. {error}")
    raise AssertionError("there is no end of names")


def output_paths(prefix: str, ending: str = ENDING) -> Iterator[Path]:
    """Names under the output folder in their order: <prefix>_<number>_<ending>, from the number after the last on.

    Raises DeltaError as `check_prefix`, and if its folder cannot be made.
    """
    check_prefix(prefix, ending)
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    except OSError as error:
        raise DeltaError(
            f"The folder for '{prefix}' cannot be used ({error.strerror or error}). Choose another filename_prefix."
        ) from error
    return (Path(folder, f"{name}_{number:05}_{ending}") for number in itertools.count(counter))


def check_prefix(prefix: str, ending: str = ENDING) -> None:
    """Raise DeltaError if a prefix leads out of the output folder, names a folder and no file in it, or has a part that
    no file or folder can be called on this system. Nothing is made for it."""
    what = f"The filename_prefix {_shown(prefix)}"
    output = os.path.abspath(folder_paths.get_output_directory())
    parts = prefix.replace(os.sep, "/").split("/")
    if parts[-1] in ("", ".", ".."):
        raise DeltaError(f"{what} names a folder and no file in it. Write a name behind it, like 'sara/delta'.")
    check_name(f"{parts[-1]}_00001_{ending}" if parts[-1].strip(". ") else parts[-1], what)
    for part in parts[:-1]:
        if part not in ("", ".", ".."):
            check_name(part, what)
    folder = os.path.abspath(os.path.join(output, *parts[:-1])) if parts[0] else os.path.abspath("/".join(parts[:-1]))
    if os.path.commonpath([output, folder]) != output:
        raise DeltaError(f"{what} leads out of ComfyUI's output folder. Choose one inside it, like 'sara/delta'.")
    check_path(os.path.join(folder, f"{parts[-1]}_00001_{ending}"), what)


def _shown(prefix: str) -> str:
    return f"{prefix[:60]!r}" if len(prefix) <= 60 else f"{prefix[:60]!r}…"


def not_offered(path: Path) -> str:
    """A sentence, if a delta was saved where SaRA Loader and Load LoRA do not look; otherwise empty."""
    places = [Path(folder).absolute() for folder in folder_paths.get_folder_paths(FOLDER)]
    if any(place in path.absolute().parents for place in places):
        return ""
    return "SaRA Loader does not look there: begin the filename_prefix with sara/ for it to offer the file."


def save_own(delta: SparseDelta, folder: str, name: str) -> Path:
    """Save a delta that nobody has chosen a name for, where it replaces nothing; returns its path.

    Raises DeltaError if it cannot be written.
    """
    path, _ = save_new(own_output_paths(folder, name), lambda path: delta.save(path, overwrite=False))
    return path


def own_output_paths(folder: str, name: str) -> Iterator[Path]:
    """Names under the output folder for what nobody has chosen a name for: <name>.safetensors, <name>_2.safetensors …

    folder: relative to the output folder. Raises DeltaError if it cannot be made.
    """
    place = Path(folder_paths.get_output_directory(), folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeltaError(
            f"The folder output/{folder} cannot be made ({error.strerror or error}). See what is in its place."
        ) from error
    return (place / f"{own}{ENDING}" for own in numbered(name))


def snapshot_folder() -> Path:
    """Where snapshots of runs are kept: beside output/sara, because they are no deltas that a loader should offer."""
    return Path(folder_paths.get_output_directory(), SNAPSHOTS)


def snapshot_names() -> list[str]:
    """Names of all snapshots, newest first, for a node's menu; what is no file that can be looked at is left out."""
    newest = {}
    for name in _entries(snapshot_folder()):
        path = snapshot_folder() / name
        try:
            if name.endswith(ENDING) and _is_text(name) and path.is_file():
                newest[name] = path.stat().st_mtime
        except OSError:
            logging.warning(f"SaRA: {name!r} in output/{SNAPSHOTS} cannot be looked at and is left out.")
    return sorted(newest, key=lambda name: (-newest[name], name))


def resume_names() -> list[str]:
    """The same under the names that people choose them by."""
    return [snapshot_title(snapshot_folder() / name) for name in snapshot_names()]


def snapshot_title(path: Path) -> str:
    """What a snapshot is called in the menu: "run 3, step 27"; a file that somebody has named, by that name."""
    match = _OF_RUN.fullmatch(path.name)
    title = match and f"run {int(match[1])}, step {int(match[2])}"
    return title if title and _file_of(title) == path.name else path.name


def _file_of(title: str) -> str:
    match = _IN_MENU.fullmatch(title)
    return file_name(_run_name(int(match[1])), int(match[2])) if match else title


def snapshot_path(name: str) -> Path:
    """Path of a snapshot by its name in the menu, or by its file's name. Raises DeltaError if there is none."""
    file = _file_of(name)
    if file not in snapshot_names():
        raise DeltaError(Sentence(
            "There is no snapshot '{name}' in output/{folder}. Press R and choose another one, or 'none'.", name=name,
            folder=SNAPSHOTS,
        ))  # fmt: skip
    return snapshot_folder() / file


def reserved_run(resumed: Path | None) -> AbstractContextManager[str]:
    """The name of a run, nobody else's as long as the context lasts: run_<number>, which no other run has had that left
    snapshots, pictures or an unsaved delta; or that of the run whose snapshot is resumed, unless it may be living."""
    names = map(_run_name, itertools.count(max(_numbers_of_runs(), default=0) + 1))

    def is_taken(name: str) -> bool:
        return name in map(_run_name, _numbers_of_runs())

    return reserved(snapshot_folder(), resumed and run_of(resumed), names, is_taken)


def _run_name(number: int) -> str:
    return f"run_{number:05}"


def _numbers_of_runs() -> set[int]:
    """The numbers of all runs that have left files."""
    folders = (snapshot_folder(), sample_folder(""), Path(folder_paths.get_output_directory(), UNSAVED))
    return {int(match[1]) for folder in folders for name in _entries(folder) if (match := _RUN.match(name))}


def _is_text(name: str) -> bool:
    """Whether a file's name can be written, and sent to a page and back."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _entries(folder: Path) -> list[str]:
    """Names of all that is in a folder; nothing if it cannot be read."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        logging.warning(f"SaRA: the folder {folder} cannot be read ({error.strerror or error}).")
        return []


def sample_folder(run: str) -> Path:
    """Where a run's pictures are kept."""
    return Path(folder_paths.get_output_directory(), SAMPLES, run)


def relative_to_output(path: Path) -> str:
    """The path as a person finds it: relative to the output folder, with forward slashes."""
    return Path(os.path.relpath(path, folder_paths.get_output_directory())).as_posix()


def delta_name(path: Path) -> str | None:
    """What a delta in output/sara is called in SaRA Loader's menu; None for one elsewhere."""
    folder = Path(folder_paths.get_output_directory(), FOLDER)
    return str(path.relative_to(folder)) if folder in path.parents else None


def as_output(path: Path) -> dict[str, str]:
    """A file in the output folder, as the page asks the host for it."""
    place = Path(relative_to_output(path))
    subfolder = "" if place.parent == Path(".") else place.parent.as_posix()
    return {"filename": place.name, "subfolder": subfolder, "type": "output"}


def fingerprint(path: Path) -> str:
    """Changes whenever the file does: modification time and size. Whoever opens one that is gone learns so."""
    try:
        status = path.stat()
    except OSError:
        return "gone"
    return f"{status.st_mtime_ns}:{status.st_size}"


def _existing(folder: str, name: str, where: Sentence) -> Path:
    path = folder_paths.get_full_path(folder, name) if isinstance(name, str) else None
    if path is None or name not in file_names(folder):
        raise DeltaError(Sentence(
            "There is no file '{name}' in {where}. Put it there, or press R and choose another one.", name=str(name),
            where=where,
        ))  # fmt: skip
    return Path(path)
