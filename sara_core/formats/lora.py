"""Reading adapter files: LoRA and LyCORIS, and the weight differences that ComfyUI writes (`.diff`, `.diff_b`)."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from ..base import PREFIX, Base
from ..errors import DeltaError
from ..names import listed
from ..names_diffusers import dense_to_comfy
from ..names_parts import Part
from .adapter_math import PARTS, change
from .adapter_names import is_text_encoder, places
from .source import Source

_BY_LENGTH = sorted(PARTS, key=len, reverse=True)
_UNREADABLE = {
    ".dora_scale": "DoRA, whose change depends on the strength it is applied with",
    ".set_weight": "weights that replace the model's own",
    ".reshape_weight": "layers that change their size",
    ".oft_blocks": "OFT, which rotates weights",
    ".oft_diag": "OFT, which rotates weights",
    ".boft_blocks": "BOFT, which rotates weights",
    ".b1.weight": "GLoRA, whose change depends on the model's own weights",
}


@dataclass
class AdapterFile:
    """What an adapter file changes, without having read it.

    alpha: of modules that have none of their own in the file (None: their rank)
    modules: by ComfyUI's weight name without prefix, the file's modules that are parts of it
    left_out: modules of text encoders
    """

    source: Source
    base: Base
    alpha: float | None = None
    modules: Mapping[str, list["_Module"]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def changes(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, dense change in float32) of each weight, one at a time.

        Raises DeltaError if a module's tensors do not make a change of its weight.
        """
        for name, modules in self.modules.items():
            shape = self.base.shapes[name]
            yield PREFIX + name, functools.reduce(
                torch.add, (one.change(self.source, shape, self.alpha) for one in modules)
            )


@dataclass
class _Module:
    """One module of the file. tensors: part (see adapter_math.PARTS) → name in the file; place: of its weight"""

    name: str
    tensors: Mapping[str, str]
    place: Part

    def change(self, source: Source, shape: tuple[int, ...], alpha: float | None) -> torch.Tensor:
        """The change of the whole weight, of `shape`, that this part of it makes; alpha: if it has none of its own."""
        tensors = {part: source.tensor(name) for part, name in self.tensors.items() if part != "alpha"}
        if "alpha" in self.tensors:
            alpha = _alpha(source, self.tensors["alpha"])
        own_shape = self.place.own_shape(shape) or ()
        own = dense_to_comfy(change(self.name, tensors, own_shape, alpha), self.place)
        if own_shape == shape:
            return own
        whole = torch.zeros(shape)
        begin = self.place.begin(own_shape)
        whole.view(-1)[begin : begin + own.numel()] = own.reshape(-1)
        return whole


def opened_adapter(source: Source, base: Base, alpha: float | None = None) -> AdapterFile:
    """The adapter in a file, its modules found in the base. alpha: what stands beside the file (peft_alpha).

    Raises DeltaError for kinds of adapters that are no fixed change of weights, and for modules the base lacks.
    """
    modules = _modules(source.names)
    known = places(base)
    file = AdapterFile(source, base, alpha)
    missing = []
    for name, tensors in modules.items():
        if name in known:
            _add(file, name, tensors, known[name])
        elif is_text_encoder(name):
            file.left_out.append(name)
        else:
            missing.append(name)
    if missing:
        raise DeltaError(
            f"{len(missing)} of the file's {len(modules)} modules do not exist in '{base.label}': {listed(missing)}. "
            "Give the base model that it was trained on."
        )
    if not file.modules:
        raise DeltaError("The file changes only text encoders; a SaRA delta changes the diffusion model.")
    return file


def _add(file: AdapterFile, name: str, tensors: Mapping[str, str], place: Part) -> None:
    weight = {part: found for part, found in tensors.items() if part != "bias"}
    if set(weight) - {"alpha"}:
        file.modules.setdefault(place.name, []).append(_Module(name, weight, place))
    if "bias" in tensors:
        bias = place._replace(name=place.name.removesuffix(".weight") + ".bias")
        if bias.name not in file.base.shapes:
            raise DeltaError(f"'{name}' has no bias in '{file.base.label}'. Give the base that the file was made for.")
        file.modules.setdefault(bias.name, []).append(_Module(name, {"diff": tensors["bias"]}, bias))


def _modules(names: list[str]) -> dict[str, dict[str, str]]:
    """Module → part → tensor name. Raises DeltaError for tensors that no known kind of adapter has."""
    modules: dict[str, dict[str, str]] = {}
    foreign = []
    for name in names:
        ending = next((ending for ending in _BY_LENGTH if name.endswith(ending)), None)
        if ending is None:
            foreign.append(name)
        else:
            modules.setdefault(name.removesuffix(ending), {})[PARTS[ending]] = name
    for ending, what in _UNREADABLE.items():
        if any(name.endswith(ending) for name in foreign):
            raise DeltaError(f"The file holds {what}: this cannot be converted. Bake it into a checkpoint in its own "
                             "program, and extract the difference of the checkpoints.")  # fmt: skip
    if foreign:
        raise DeltaError(f"The file has {len(foreign)} tensors of an unknown kind, such as '{foreign[0]}'.")
    return modules


def _alpha(source: Source, name: str) -> float:
    tensor = source.tensor(name)
    if tensor.numel() != 1:
        raise DeltaError(f"'{name}' is not one number. Get the file again from where it came from.")
    return float(tensor)
