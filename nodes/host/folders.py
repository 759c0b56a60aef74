"""Where delta files are found and saved: models/sara and output/sara, both offered by the stock LoRA loaders too; and
where a training keeps its snapshots and pictures."""

import itertools
import logging
import os
from pathlib import Path

import folder_paths

from ...sara_core.errors import DeltaError

FOLDER = "sara"
SNAPSHOTS = "sara_snapshots"
SAMPLES = "sara_samples"
ENDING = ".safetensors"
MODEL_FOLDERS = ("checkpoints", "diffusion_models")


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


def model_names() -> list[str]:
    """Names of all checkpoints and diffusion-model files, for a node's menu."""
    names = (folder_paths.get_filename_list(folder) for folder in MODEL_FOLDERS)
    return list(dict.fromkeys(itertools.chain.from_iterable(names)))


def model_path(name: str) -> Path:
    """Path of a file by its name in that menu. Raises DeltaError if there is none."""
    folder = next((f for f in MODEL_FOLDERS if name in folder_paths.get_filename_list(f)), MODEL_FOLDERS[0])
    return _existing(folder, name, "models/checkpoints or models/diffusion_models")


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


def snapshot_folder() -> Path:
    """Where snapshots of runs are kept: beside output/sara, because they are no deltas that a loader should offer."""
    return Path(folder_paths.get_output_directory(), SNAPSHOTS)


def snapshot_names() -> list[str]:
    """Names of all snapshots, newest first, for a node's menu."""
    files = snapshot_folder().glob(f"*{ENDING}")
    return [path.name for path in sorted(files, key=lambda path: (-path.stat().st_mtime, path.name))]


def snapshot_path(name: str) -> Path:
    """Path of a snapshot by its name in the menu. Raises DeltaError if there is none."""
    if name not in snapshot_names():
        raise DeltaError(
            f"There is no snapshot '{name}' in output/{SNAPSHOTS}. Press R and choose another one, or 'none'."
        )
    return snapshot_folder() / name


def new_run_name() -> str:
    """A name that no run has had which left snapshots or pictures: run_<number>."""
    taken = [path.name for folder in (snapshot_folder(), sample_folder("")) for path in folder.glob("run_*")]
    numbers = [int(name.split("_")[1]) for name in taken if name.split("_")[1].isdecimal()]
    return f"run_{max(numbers, default=0) + 1:05}"


def run_of_snapshot(path: Path) -> str:
    """The name of the run that a snapshot is of."""
    return path.stem.partition("_step")[0]


def sample_folder(run: str) -> Path:
    """Where a run's pictures are kept."""
    return Path(folder_paths.get_output_directory(), SAMPLES, run)


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
