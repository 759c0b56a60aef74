"""What results are written as: tensors in safetensors files, everything else as JSON or text, so that every bit can be
compared."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


class Records:
    """Results in a folder, by names, which may have slashes in them."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, name: str) -> Path:
        """Where a file of this name goes; its folder is there."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def text(self, name: str, text: str) -> None:
        self.path(f"{name}.txt").write_text(text, encoding="utf-8")

    def value(self, name: str, value: Any) -> None:
        """A tree of mappings and sequences with tensors, deltas, numbers and texts in it."""
        tensors: dict[str, torch.Tensor] = {}
        rest = _without_tensors(value, "", tensors)
        if tensors:
            save_file(tensors, self.path(f"{name}.safetensors"))
        text = json.dumps(rest, indent=1, ensure_ascii=False)
        self.path(f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _without_tensors(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The tree with "<tensor NAME>" in the place of each tensor, which go into `tensors`."""
    if isinstance(value, torch.Tensor):
        name = name or "tensor"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return f"<tensor {name}>"
    if hasattr(value, "entries") and hasattr(value, "metadata"):  # a SparseDelta, of whichever module's class
        value = {"metadata": dict(sorted(value.metadata.items())), "entries": value.entries}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _without_tensors(item, f"{name}/{key}".lstrip("/"), tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item, f"{name}/{place}".lstrip("/"), tensors) for place, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which is not known how to compare")


def nested(tensors: Mapping[str, torch.Tensor]) -> dict:
    """Mappings within mappings, as `Records.value` named them: "a/b" → {"a": {"b": …}}."""
    tree: dict = {}
    for name, tensor in tensors.items():
        *parents, last = name.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = tensor
    return tree
