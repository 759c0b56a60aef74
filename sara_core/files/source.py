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

_PART = r"-[0-9]{5}-of-[0-9]{5}"
_MODEL = "diffusion_pytorch_model"
# A file of weights in the folder of one of a pipeline's parts. Older folders have a part's number before the variant.
WEIGHTS_FILE = re.compile(
    rf"(?P<stem>{_MODEL}|model)(?P<older_part>{_PART})?(?:\.(?P<variant>\w+))?(?P<part>{_PART})?\.safetensors"
)
# The variants that are taken before others, after none.
_FIRST = {"": 0, "fp16": 1, "bf16": 2}


def preferred_variant(variants: Iterable[str]) -> str:
    """Which of a model's variants to open: none (""), fp16, bf16, or the first of the others."""
    return min(variants, key=lambda variant: (_FIRST.get(variant, len(_FIRST)), variant))


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
    variant go before fp16, bf16 and other ones.
    Raises DeltaError if some of a model's files are missing.
    """
    for place in (folder / "unet", folder / "transformer", folder):
        variants: dict[str, list[tuple[str, Path]]] = {}
        for path in sorted(place.glob("*.safetensors")):
            match = WEIGHTS_FILE.fullmatch(path.name)
            if match and match["stem"] == _MODEL and path.is_file():
                part = match["older_part"] or match["part"]
                variants.setdefault(match["variant"] or "", []).append((part, path))
        if not variants:
            continue
        files = variants[preferred_variant(variants)]
        if whole := [path for part, path in files if not part]:
            return whole
        needed = files[0][0].rpartition("-")[2]
        if f"{len(files):05}" != needed:
            raise DeltaError(
                f"'{place}' is incomplete: the model is in {needed.lstrip('0')} files, of which {len(files)} "
                "are there. Download the others too."
            )
        return [path for _, path in files]
    return []
