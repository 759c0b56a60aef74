"""Snapshots of a run: its whole state in one safetensors file, written atomically.

A state is a tree of dictionaries and lists with numbers, strings and tensors in it. The tensors become the file's
tensors; the tree around them, with each tensor's name in its place, is JSON in the file's metadata. No pickle.
"""

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from ..errors import DeltaError
from ..files import atomic, container
from ..files.saved_state import fields
from ..wording import Sentence
from .words import Words

_TREE, _SETTINGS, _VERSION = "sara.snapshot.state", "sara.snapshot.settings", "sara.snapshot.version"
VERSION = "1"
_TENSOR = "__tensor__"
_NAME = re.compile(r"(.+)_step([0-9]{7,18})\.safetensors", re.DOTALL)


def save(path: str | os.PathLike, state: Mapping, settings: Mapping) -> None:
    """Write a state and the settings that the run was started with (numbers, strings and lists of them).

    Raises DeltaError if it cannot be written; what was at `path` before is then unchanged.
    """
    tensors: dict[str, torch.Tensor] = {}
    metadata = {
        _TREE: json.dumps(_without_tensors(state, "", tensors)),
        _SETTINGS: json.dumps(settings),
        _VERSION: VERSION,
    }
    with atomic.replacing(path) as file:
        container.write(file, tensors, metadata)


def load(path: str | os.PathLike, words: Words = Words()) -> tuple[dict, dict]:
    """State and settings of a snapshot, its tensors on the CPU, copied from the file.

    Raises DeltaError for a file that is not whole. What the state says is for whoever takes it to check
    (Training.check_state).
    """
    with container.opened_copied(path) as file:
        metadata = file.metadata() or {}
        if metadata.get(_VERSION) != VERSION:
            raise DeltaError(Sentence(
                "'{name}' is no snapshot of a training that this version can resume: {remedy}.", name=Path(path).name,
                remedy=words.other_file,
            ))  # fmt: skip
        try:
            unread = set(file.keys())

            def own_copy(name: str) -> torch.Tensor:
                unread.remove(name)  # one that is named a thousand times would take a thousand times its memory
                return file.get_tensor(name)

            state = fields(_with_tensors(json.loads(metadata[_TREE]), own_copy), "it", ())
            return state, fields(json.loads(metadata[_SETTINGS]), "the table of its settings", ())
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:  # RecursionError too
            raise DeltaError(Sentence(
                "The snapshot '{name}' is damaged ({kind}: {why}): choose an earlier one.", name=Path(path).name,
                kind=type(error).__name__, why=shorten(str(error), 100),
            )) from error  # fmt: skip


class RunSnapshots:
    """The snapshots of one run in a folder: <run>_step<number>.safetensors, of which the last few are kept.

    Whatever else is in the folder is left alone, other runs' snapshots and copies under other names among it.
    """

    def __init__(self, folder: str | os.PathLike, run: str, keep: int):
        self.folder, self.run, self.keep = Path(folder), run, keep

    def is_due(self, step: int, steps: int, every: int) -> bool:
        """Whether to write one after `step` of `steps`: after every so many (0: after none) but the last, and before
        the last if there is none yet, so that there is one until the finished delta is on the disk."""
        if not every or step >= steps:
            return False
        return step % every == 0 or (step == steps - 1 and not self.existing())

    def save(self, step: int, state: Mapping, settings: Mapping) -> Path:
        """Write one more; of those of earlier steps the oldest beyond `keep` go, only after it is complete.

        Raises DeltaError as `save`.
        """
        path = self.folder / file_name(self.run, step)
        with atomic.errors_in_words(path), contextlib.suppress(FileExistsError):  # the file's own error is better
            self.folder.mkdir(parents=True, exist_ok=True)
        save(path, state, settings)
        # Those of later steps are there if the run was resumed from before them: it will come to them again.
        earlier = [other for other in self.existing() if _run_and_step(other.name)[1] < step]
        _remove(earlier[: max(0, len(earlier) + 1 - self.keep)])
        return path

    def discard(self) -> None:
        """Remove all of them: the run has come to its end."""
        _remove(self.existing())

    def existing(self) -> list[Path]:
        """All of them, by their steps. Empty if the folder cannot be read."""
        try:
            names = os.listdir(self.folder)
        except OSError:
            return []
        found = {name: _run_and_step(name) for name in names}
        own = [name for name, run_and_step in found.items() if run_and_step and run_and_step[0] == self.run]
        return [self.folder / name for name in sorted(own, key=lambda name: found[name][1])]


def run_of(path: str | os.PathLike) -> str | None:
    """The run that a snapshot is of, by its file's name; None for a name that no run gives, as that of a copy, and for
    one with a dot at the beginning: what a run '..' leaves would go elsewhere."""
    name = Path(path).name
    run_and_step = None if name.startswith(".") else _run_and_step(name)
    return run_and_step and run_and_step[0]


def file_name(run: str, step: int) -> str:
    """What the snapshot of a run after a step is called."""
    return f"{run}_step{step:07}.safetensors"


def _run_and_step(name: str) -> tuple[str, int] | None:
    match = _NAME.fullmatch(name)
    if match is None or name != file_name(match[1], int(match[2])):
        return None
    return match[1], int(match[2])


def _remove(paths: list[Path]) -> None:
    for path in paths:
        # One that is open elsewhere, which Windows does not let go, is not worth failing for.
        with contextlib.suppress(OSError):
            path.unlink()


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """A line for every setting that differs: 'seed: 1 in the snapshot, 2 now'."""
    # Through JSON, as the saved ones went: tuples have become lists.
    current = json.loads(json.dumps(current))
    names = [*saved, *(name for name in current if name not in saved)]
    return [
        # Of the data there is a digest alone, which tells nobody anything.
        "data: other images or captions than in the snapshot" if name == "data"
        else f"{name}: {saved.get(name, 'absent')} in the snapshot, {current.get(name, 'absent')} now"
        for name in names if saved.get(name) != current.get(name)
    ]  # fmt: skip


def _without_tensors(value, name: str, tensors: dict[str, torch.Tensor]):
    if isinstance(value, torch.Tensor):
        # bool has no place in every reader of the format; one byte an element has.
        tensors[name] = value.to(torch.uint8) if value.dtype == torch.bool else value
        return {_TENSOR: name, "bool": value.dtype == torch.bool}
    if isinstance(value, Mapping):
        return {
            "keys": list(value),
            "values": [_without_tensors(item, f"{name}/{key}".lstrip("/"), tensors) for key, item in value.items()],
        }
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item, f"{name}/{position}", tensors) for position, item in enumerate(value)]
    return value


def _with_tensors(value, tensor_of):
    if isinstance(value, dict) and _TENSOR in value:
        tensor = tensor_of(value[_TENSOR])
        return tensor.bool() if value["bool"] else tensor
    if isinstance(value, dict):
        return dict(zip(value["keys"], [_with_tensors(item, tensor_of) for item in value["values"]], strict=True))
    if isinstance(value, list):
        return [_with_tensors(item, tensor_of) for item in value]
    return value
