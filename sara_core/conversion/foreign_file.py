"""A file or folder that somebody gave us, opened just so far that it can be recognised."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DeltaError
from ..files import torch_file
from ..files.source import Source, opened


class ForeignFile:
    """What is known of it before anything of a tensor is read.

    path: of the file, or of a folder that is not one of a format's with a single file in it
    source: its named tensors, if it is a safetensors file or torch.save wrote nothing but named tensors into it
    content: what torch.save wrote, as torch_file.load gives it; None for any other file
    unreadable: why it is no safetensors file, if it is neither that nor torch.save's nor a folder
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
        yield ForeignFile(path, _named_tensors(path.name, content), content)
    else:
        with contextlib.ExitStack() as stack:
            try:
                file = ForeignFile(path, stack.enter_context(opened([path], path.name)))
            except DeltaError as error:
                file = ForeignFile(path, unreadable=error)
            yield file


def _named_tensors(label: str, content: Any) -> Source | None:
    named = isinstance(content, dict) and all(
        isinstance(name, str) and torch_file.is_plain(tensor) for name, tensor in content.items()
    )
    return Source(label, tensors={name: tensor.detach() for name, tensor in content.items()}) if named else None
