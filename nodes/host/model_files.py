"""Where files of other formats are found, and the models they belong to: what the host's own menus offer."""

import os
from pathlib import Path

import folder_paths

from ...sara_core.errors import DeltaError
from .folders import file_names, model_names, model_path

DIFFUSERS = "diffusers"


def adapter_names() -> list[str]:
    """Names of all files that Load LoRA offers; deltas are among them."""
    return file_names("loras")


def diffusers_names() -> list[str]:
    """Names of all pipelines in diffusers folders, relative to their folder and behind "diffusers/"."""
    found = []
    for folder in folder_paths.get_folder_paths(DIFFUSERS):
        seen = set()
        for place, subfolders, files in os.walk(folder, followlinks=True):
            if (real := os.path.realpath(place)) in seen:  # a link that leads in a circle
                subfolders.clear()
                continue
            seen.add(real)
            if "model_index.json" in files:
                found.append(f"{DIFFUSERS}/{Path(os.path.relpath(place, folder)).as_posix()}")
    return sorted(found)


def base_names() -> list[str]:
    """Names of all models, for a node's menu."""
    return [*model_names(), *diffusers_names()]


def base_path(name: str) -> Path:
    """Path of a model by its name in the menu. Raises DeltaError if there is none."""
    if name in diffusers_names():
        inner = name.removeprefix(f"{DIFFUSERS}/")
        folders = (Path(folder, inner) for folder in folder_paths.get_folder_paths(DIFFUSERS))
        if (found := next((folder for folder in folders if (folder / "model_index.json").is_file()), None)) is not None:
            return found
    return model_path(name)


def foreign_path(name: str) -> Path:
    """Path of an adapter file, or of a model, by its name in the menus. Raises DeltaError if there is none."""
    if name in adapter_names() and (path := folder_paths.get_full_path("loras", name)) is not None:
        return Path(path)
    if name in base_names():
        return base_path(name)
    raise DeltaError(f"There is no file '{name}' in models/loras. Put it there, or press R and choose another one.")
