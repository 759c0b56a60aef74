"""An opened file of named tensors, foreign or ours: nothing of it is in memory until it is asked for."""

import contextlib
import copy
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from ..errors import DeltaError
from . import container

_PART = r"-[0-9]{5}-of-[0-9]{5}\.safetensors"


class Source:
    """Names, shapes and tensors of one or several safetensors files, or of a state dict.

    label: what the user calls it; metadata: text → text, of the first file
    files: as container.opened or opened_copied gives them; a name that two of them have is the last one's
    """

    def __init__(
        self,
        label: str,
        files: Sequence[safe_open | container.Copied] = (),
        tensors: Mapping[str, torch.Tensor] | None = None,
    ):
        self.label = label
        self._files = {name: file for file in files for name in file.keys()}
        self._tensors = tensors or {}
        self._stored = {name: name for name in (*self._files, *self._tensors)}
        self.metadata: dict[str, str] = next((file.metadata() or {} for file in files), {})

    @property
    def names(self) -> list[str]:
        """All tensor names."""
        return list(self._stored)

    def renamed(self, names: Mapping[str, str]) -> "Source":
        """The tensors that are named here, under other names; nothing is read. names: new name → name"""
        other = copy.copy(self)
        other._stored = {new: self._stored[name] for new, name in names.items()}
        return other

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        stored = self._stored[name]
        if stored in self._tensors:
            return tuple(self._tensors[stored].shape)
        return tuple(self._files[stored].get_slice(stored).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, in its own dtype. It may be a view of the mapped file: use it while the file is open, and neither
        keep nor change it."""
        stored = self._stored[name]
        return self._tensors[stored] if stored in self._tensors else self._files[stored].get_tensor(stored)


@contextlib.contextmanager
def opened(paths: Iterable[str | os.PathLike], label: str, copied: bool = False) -> Iterator[Source]:
    """The tensors of one or several .safetensors files, which are open as long as the block lasts.

    label: what the user calls them; copied: whether others may be writing the files, so that nothing is to be mapped

    Raises DeltaError if one is missing, unreadable or damaged.
    """
    with contextlib.ExitStack() as stack:
        open_file = container.opened_copied if copied else container.opened
        yield Source(label, [stack.enter_context(open_file(path)) for path in paths])


def model_files(folder: Path) -> list[Path]:
    """The .safetensors files of a diffusers model; empty if the folder has none.

    folder: a model's own, or a pipeline's, whose diffusion model is in `unet` or `transformer`. Files without a
    variant go before fp16 and bf16 ones.
    Raises DeltaError if some of a model's files are missing.
    """
    for place in (folder / "unet", folder / "transformer", folder):
        for variant in ("", ".fp16", ".bf16"):
            name = f"diffusion_pytorch_model{variant}"
            if os.path.isfile(whole := place / f"{name}.safetensors"):
                return [whole]
            part = re.compile(re.escape(name) + _PART)
            if parts := sorted(path for path in place.glob(f"{name}-*.safetensors") if part.fullmatch(path.name)):
                needed = parts[0].stem.rpartition("-")[2]
                if f"{len(parts):05}" != needed:
                    raise DeltaError(
                        f"'{place}' is incomplete: the model is in {needed.lstrip('0')} files, of which {len(parts)} "
                        "are there. Download the others too."
                    )
                return parts
    return []
