"""Where delta files are found and saved: models/sara and output/sara, both offered by the stock LoRA loaders too."""

import logging
import os
from pathlib import Path

import folder_paths

from ...sara_core.errors import DeltaError

FOLDER = "sara"
ENDING = ".safetensors"


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
    """Names of all delta files, relative to their folder, for a node's menu."""
    return folder_paths.get_filename_list(FOLDER)


def delta_path(name: str) -> Path:
    """Path of a delta file by its name in the menu. Raises DeltaError if there is none."""
    return _existing(FOLDER, name, "models/sara or output/sara")


def checkpoint_path(name: str) -> Path:
    """Path of a checkpoint by its name in the menu. Raises DeltaError if there is none."""
    return _existing("checkpoints", name, "models/checkpoints")


def new_output_path(prefix: str) -> Path:
    """A path under the output folder that no file has yet: <prefix>_<next number>_.safetensors.

    Raises DeltaError if the prefix leaves the output folder or its folder cannot be made.
    """
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    except OSError as error:
        raise DeltaError(
            f"The folder for '{prefix}' cannot be used ({error.strerror or error}). Choose another filename_prefix."
        ) from error
    except Exception as error:  # the host raises a bare Exception for a prefix that leaves the folder
        raise DeltaError(
            f"The filename_prefix '{prefix}' leads out of ComfyUI's output folder. Choose one inside it, like "
            "'sara/delta'."
        ) from error
    path = Path(folder, f"{name}_{counter:05}_{ENDING}")
    # The host tells "Name" from "name" where the disk may not.
    while path.exists():
        counter += 1
        path = Path(folder, f"{name}_{counter:05}_{ENDING}")
    return path


def relative_to_output(path: Path) -> str:
    """The path as a person finds it: relative to the output folder, with forward slashes."""
    return Path(os.path.relpath(path, folder_paths.get_output_directory())).as_posix()


def fingerprint(path: Path) -> str:
    """Changes whenever the file does: modification time and size."""
    status = path.stat()
    return f"{status.st_mtime_ns}:{status.st_size}"


def _existing(folder: str, name: str, where: str) -> Path:
    path = folder_paths.get_full_path(folder, name)
    if path is None or name not in folder_paths.get_filename_list(folder):
        raise DeltaError(f"There is no file '{name}' in {where}. Put it there, or press R and choose another one.")
    return Path(path)
