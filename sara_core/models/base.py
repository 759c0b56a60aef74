"""A base model as conversions need it: one weight at a time, under either side's names."""

import contextlib
import functools
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ..delta import SparseEntry
from ..delta.translate import dense_to_comfy, dense_to_diffusers, to_comfy
from ..errors import DeltaError
from ..files import container
from ..files.source import Source, model_files
from ..names.diffusers import Shape, check_known, is_diffusers, parts_of_all
from ..names.families import family_of
from ..names.stored import PREFIX, loaded_names
from . import unquantised
from .text_encoders import TextEncoders


class Base:
    """The diffusion model of a checkpoint, of a diffusion-model file, or of a diffusers folder.

    label: what the user calls it
    shapes: ComfyUI's names, without the prefix `diffusion_model.` → shapes
    parts: diffusers names → their places (names.diffusers); empty for families that have the same names on both sides
    diffusers_shapes: the names that diffusers and PEFT use → shapes
    family: "SD1.5" …, if the names tell; is_diffusers: whether it is stored under diffusers names
    precisions: ComfyUI's names → what people call the precision that a quantised weight has in the file, where it is
        read dequantised
    """

    def __init__(self, source: Source, precisions: Mapping[str, str] | None = None):
        self.label = source.label
        self._source = source
        self._stored = loaded_names(source.names)
        shapes = {name: source.shape(stored) for name, stored in self._stored.items()}
        known = family_of(shapes, whole=True)
        self.parts = parts_of_all(known, shapes)
        self.family = None if known is None else known.name
        self.is_diffusers = is_diffusers(shapes, self.parts)
        self.diffusers_shapes = shapes
        self.shapes = self._joined_shapes(shapes) if self.is_diffusers else shapes
        if self.parts and not self.is_diffusers:
            self.diffusers_shapes = {
                name: self._possible(name, part.part_shape(shapes[part.name])) for name, part in self.parts.items()
            }
        self._diffusers_names: dict[str, list[str]] = {}
        for name, part in self.parts.items():
            self._diffusers_names.setdefault(part.name, []).append(name)
        known = precisions or {}
        self.precisions = {self._place(name): known[one] for name, one in self._stored.items() if one in known}

    def weight(self, name: str) -> torch.Tensor:
        """A weight by ComfyUI's name, in its own dtype; use it while the base is open, and do not change it."""
        if not self.is_diffusers:
            return self._source.tensor(self._stored[name])
        names = self._diffusers_names[name]
        pieces = [(self.parts[piece], self._source.tensor(self._stored[piece])) for piece in names]
        if len(pieces) == 1:
            part, tensor = pieces[0]
            return dense_to_comfy(tensor, part)
        whole = torch.empty(self.shapes[name], dtype=pieces[0][1].dtype)
        for part, tensor in pieces:
            begin = part.begin(tuple(tensor.shape))
            whole.view(-1)[begin : begin + tensor.numel()] = dense_to_comfy(tensor, part).reshape(-1)
        return whole

    def weights(self) -> Mapping[str, torch.Tensor]:
        """All weights by ComfyUI's names with the prefix, each read when it is asked for."""
        return _Weights(self)

    @functools.cached_property
    def text_encoders(self) -> TextEncoders:
        """The text encoders in the same file; without weights where it has none."""
        return TextEncoders(self._source)

    @property
    def elements(self) -> int:
        """Number of elements of all weights."""
        return sum(map(math.prod, self.shapes.values()))

    def diffusers_weight(self, name: str) -> torch.Tensor:
        """A weight by the name that diffusers and PEFT use, in its own dtype."""
        if self.is_diffusers or not self.parts:
            return self._source.tensor(self._stored[name])
        part = self.parts[name]
        return dense_to_diffusers(self._source.tensor(self._stored[part.name]), part)

    def from_diffusers(self, entries: Mapping[str, SparseEntry]) -> dict[str, SparseEntry]:
        """Entries by the names that diffusers and PEFT use → entries by ComfyUI's names, with the prefix.

        Raises DeltaError if the base has no such weight, or one of another shape.
        """
        check_known(entries, self.diffusers_shapes)
        for name, entry in entries.items():
            if entry.shape != self.diffusers_shapes[name]:
                raise DeltaError(
                    f"'{name}' has shape {list(self.diffusers_shapes[name])} in '{self.label}', but "
                    f"{list(entry.shape)} in the file. The file was made for another model: give the base it was made "
                    "for."
                )
        named = to_comfy(entries, self.parts) if self.parts else entries
        return {PREFIX + name: entry for name, entry in named.items()}

    def _place(self, name: str) -> str:
        return self.parts[name].name if self.is_diffusers else name

    def _joined_shapes(self, diffusers_shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes of ComfyUI's weights, every one of whose parts is there."""
        shapes: dict[str, Shape] = {}
        found: dict[str, int] = {}
        for name, part in self.parts.items():
            shape = self._possible(name, part.whole_shape(diffusers_shapes[name]))
            if shapes.setdefault(part.name, shape) != shape:
                self._possible(name, None)
            found[part.name] = found.get(part.name, 0) + math.prod(diffusers_shapes[name])
        incomplete = [name for name, shape in shapes.items() if found[name] != math.prod(shape)]
        if incomplete:
            raise DeltaError(f"'{self.label}' lacks a part of '{incomplete[0]}'. Download the model again.")
        return shapes

    def _possible(self, name: str, shape: Shape | None) -> Shape:
        if shape is None:
            raise DeltaError(f"'{name}' in '{self.label}' has a shape that its family of models does not have.")
        return shape


class _Weights(Mapping):
    def __init__(self, base: Base):
        self._base, self.precisions = base, base.precisions

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._base.weight(name.removeprefix(PREFIX))

    def __iter__(self) -> Iterator[str]:
        return (PREFIX + name for name in self._base.shapes)

    def __len__(self) -> int:
        return len(self._base.shapes)


@contextlib.contextmanager
def opened_base(path: str | os.PathLike, as_stored: bool = False) -> Iterator[Base]:
    """The base model at `path`: a diffusers folder, or a .safetensors file in diffusers' or ComfyUI's names.

    as_stored: whether quantised weights are read as their bytes, with their scales beside them; otherwise they are
        dequantised, in float32

    Raises DeltaError if it is missing, damaged, or no safetensors model; UnsupportedModelError, by name, for a weight
    that is quantised in a way that is not known.
    """
    path = Path(path)
    files = model_files(path) if os.path.isdir(path) else [path]
    if not files:
        raise DeltaError(
            f"The folder '{path}' holds no diffusion model as .safetensors (unet/diffusion_pytorch_model.safetensors "
            "or transformer/…). Choose the folder of the whole pipeline, or a single checkpoint file."
        )
    if os.path.isfile(path) and path.suffix.lower() != ".safetensors":
        raise DeltaError(f"The base '{path.name}' is not a .safetensors file. Save it as .safetensors first.")
    open_file = container.opened if as_stored else unquantised.opened
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(open_file(file)) for file in files]
        precisions = {name: one for file in opened for name, one in getattr(file, "precisions", {}).items()}
        yield Base(Source(path.name, opened), precisions)
