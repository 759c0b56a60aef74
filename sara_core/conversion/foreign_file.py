"""A file or folder that somebody gave us, opened just so far that it can be recognised."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import DeltaError
from ..files import torch_file
from ..files.source import Source, opened
from ..wording import listed
from .peft import plain_names

# Where trainers put the weights, beside what else belongs to a run; the hosts' own loaders look there first.
_STATE_DICT = "state_dict"
_DEEPEST = 4


class ForeignFile:
    """What is known of it before anything of a tensor is read.

    path: of the file, or of a folder that is not one of a format's with a single file in it
    source: its named tensors, if it is a safetensors file or torch.save wrote named tensors into it, by themselves or
        in the one place of a run's state that has any; PEFT's are without the name of their adapter
    content: what torch.save wrote, as torch_file.load gives it; None for any other file
    unreadable: why its named tensors cannot be had, for a file that is neither a folder nor torch.save's of another
        kind
    """

    def __init__(
        self, path: Path, source: Source | None = None, content: Any = None, unreadable: DeltaError | None = None
    ):
        self.path, self.source, self.content, self.unreadable = path, source, content, unreadable

    @property
    def names(self) -> list[str]:
        """Of all its named tensors."""
        return self.source.names if self.source is not None else []

    @property
    def is_safetensors(self) -> bool:
        """Whether it is a safetensors file."""
        return self.source is not None and self.content is None


@contextlib.contextmanager
def opened_foreign(path: Path) -> Iterator[ForeignFile]:
    """What is at `path`, which exists. Raises DeltaError for a damaged file of torch.save's."""
    if os.path.isdir(path):
        yield ForeignFile(path)
    elif torch_file.is_torch_file(path):
        content = torch_file.load(path)
        try:
            file = ForeignFile(path, _plain(_named_tensors(path.name, content)), content)
        except DeltaError as error:
            file = ForeignFile(path, content=content, unreadable=error)
        yield file
    else:
        with contextlib.ExitStack() as stack:
            try:
                file = ForeignFile(path, _plain(stack.enter_context(opened([path], path.name, copied=True))))
            except DeltaError as error:
                file = ForeignFile(path, unreadable=error)
            yield file


def _plain(source: Source | None) -> Source | None:
    return None if source is None else source.renamed(plain_names(source.names))


def _named_tensors(label: str, content: Any) -> Source | None:
    """Raises DeltaError if several places of the file have named tensors."""
    tensors = _tensors(content)
    if tensors is None or not all(torch_file.is_plain(tensor) for tensor in tensors.values()):
        return None
    return Source(label, tensors={name: tensor.detach() for name, tensor in tensors.items()})


def _tensors(content: Any, depth: int = _DEEPEST, seen: set[int] | None = None) -> dict[str, torch.Tensor] | None:
    """The named tensors of a state dict, or of the one state dict somewhere in the state of a run.

    seen: tables that were looked into already: a file may have one within itself
    """
    seen = set() if seen is None else seen
    if not isinstance(content, dict) or not depth or id(content) in seen:
        return None
    seen.add(id(content))
    if isinstance(content.get(_STATE_DICT), dict):
        return _tensors(content[_STATE_DICT], depth - 1, seen)
    by_name = {name: value for name, value in content.items() if isinstance(name, str)}
    if any(isinstance(value, torch.Tensor) and value.dim() for value in by_name.values()):
        return {name: tensor for name, value in by_name.items() if (tensor := _tensor(value)) is not None}
    places = {name: found for name, value in by_name.items() if (found := _tensors(value, depth - 1, seen))}
    if len(places) > 1:
        raise DeltaError(
            f"The file has weights in several places ({listed(places)}), and nothing says which are meant. Save those "
            "to convert in a file of their own."
        )
    return next(iter(places.values()), None)


def _tensor(value: Any) -> torch.Tensor | None:
    """A number in a file that torch.save wrote is what a safetensors file has as a tensor without sides."""
    if type(value) in (int, float):
        with contextlib.suppress(OverflowError):
            return torch.tensor(float(value), dtype=torch.float64)
    return value if isinstance(value, torch.Tensor) else None
