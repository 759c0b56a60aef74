"""Reading adapter files: LoRA and LyCORIS, and the weight differences that ComfyUI writes (`.diff`, `.diff_b`)."""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from ...delta.translate import dense_to_comfy, dense_to_diffusers
from ...errors import DeltaError
from ...files.source import Source
from ...models.base import Base
from ...names.parts import Part
from ...names.resolve import BIAS, NORM_SCALE, PREFIX, WEIGHT
from ...wording import listed
from .alpha import Alpha
from .change import change
from .names import is_text_encoder, places
from .parts import PARTS
from .peft_settings import Alphas

_BY_LENGTH = sorted(PARTS, key=len, reverse=True)
_UNREADABLE = {
    ".oft_diag": "OFT of an early LyCORIS, whose versions meant different things by it",
    ".lora_E": "AdaLoRA",
}
# What PEFT trains as a whole beside the factors (modules_to_save, bias), under its own names.
_WHOLE = re.compile(r"(base_model\.model\..+?)(?:\.base_layer)?\.(weight|bias)")
# LyCORIS's IA³ has nothing but this beside a module's `weight`, which other files have for other things.
_ON_INPUT = ".on_input"
_OF_IA3 = {"weight": "factors", "on_input": "on_input"}
_OF_BIAS = {"bias": "diff", "set_bias": "set"}
_PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_WHOLE_NUMBERS = (torch.int64, torch.int32)


@dataclass
class AdapterFile:
    """What an adapter file changes, without having read it.

    alphas: of modules that have none of their own in the file
    modules: by ComfyUI's weight name without prefix, the file's modules that are parts of it
    left_out: modules of text encoders
    """

    source: Source
    base: Base
    alphas: Alphas
    modules: Mapping[str, list["_Module"]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def changes(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, dense change in float32) of each weight, one at a time.

        Raises DeltaError if a module's tensors do not make a change of its weight.
        """
        for name, modules in self.modules.items():
            yield PREFIX + name, functools.reduce(torch.add, (one.change(self.source, self.base) for one in modules))


@dataclass
class _Module:
    """One module of the file.

    tensors: part (of PARTS) → name in the file; place: of its weight; alpha: where the file has none
    """

    name: str
    tensors: Mapping[str, str]
    place: Part
    alpha: Alpha

    def change(self, source: Source, base: Base) -> torch.Tensor:
        """The change of the whole weight that this part of it makes."""
        shape = base.shapes[self.place.name]
        part_shape = self.place.part_shape(shape) or ()
        tensors = {part: source.tensor(name) for part, name in self.tensors.items() if part != "alpha"}
        alpha = Alpha(_number(source, self.tensors["alpha"])) if "alpha" in self.tensors else self.alpha
        of_part = change(self.name, tensors, part_shape, alpha, lambda: self._weight(base))
        of_part = dense_to_comfy(of_part, self.place)
        if part_shape == shape:
            return of_part
        whole = torch.zeros(shape)
        begin = self.place.begin(part_shape)
        whole.view(-1)[begin : begin + of_part.numel()] = of_part.reshape(-1)
        return whole

    def _weight(self, base: Base) -> torch.Tensor:
        """The base's values of this part, float32, as the file's own model has them."""
        whole = base.weight(self.place.name)
        if whole.dtype not in _PLAIN:
            raise DeltaError(
                f"'{self.name}' changes a weight depending on what it is, and '{base.label}' has it quantised "
                f"({whole.dtype}). Give the base in fp16, bf16 or fp32."
            )
        return dense_to_diffusers(whole, self.place).float()


def opened_adapter(source: Source, base: Base, alphas: Alphas) -> AdapterFile:
    """The adapter in a file, its modules found in the base. alphas: what stands beside the file.

    Raises DeltaError for kinds of adapters that are not known, and for modules the base lacks.
    """
    modules = _modules(source.names)
    known = places(base)
    file = AdapterFile(source, base, alphas)
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


def _add(file: AdapterFile, name: str, tensors: dict[str, str], place: Part) -> None:
    alpha = file.alphas.of(name)
    _check_size(file, name, tensors, place)
    if "on_input" in tensors:
        channels = "inputs" if _number(file.source, tensors["on_input"]) else "outputs"
        tensors = {channels: tensors["factors"]} if "factors" in tensors else {}
    scale = {"alpha": tensors["alpha"]} if "alpha" in tensors else {}
    others = {"shape", "alpha", "lora_bias", *_OF_BIAS}
    weight = {part: found for part, found in tensors.items() if part not in others}
    if weight:
        file.modules.setdefault(place.name, []).append(_Module(name, weight | scale, place, alpha))
    of_bias = {made: tensors[part] for part, made in _OF_BIAS.items() if part in tensors}
    if "lora_bias" in tensors:
        beside = {"beside": tensors["down"]} if "down" in tensors else {}
        of_bias |= {"lora_bias": tensors["lora_bias"]} | beside | scale
    if of_bias:
        bias = place._replace(name=place.name.removesuffix(WEIGHT) + BIAS)
        if bias.name not in file.base.shapes:
            raise DeltaError(f"'{name}' has no bias in '{file.base.label}'. Give the base that the file was made for.")
        file.modules.setdefault(bias.name, []).append(_Module(name, of_bias, bias, alpha))


def _check_size(file: AdapterFile, name: str, tensors: Mapping[str, str], place: Part) -> None:
    """Raises DeltaError for layers that the file makes larger, as control LoRAs do with Flux's first."""
    shape = file.base.shapes[place.name]
    wider = False
    if "shape" in tensors:
        size = file.source.tensor(tensors["shape"])
        wider = size.dtype not in _WHOLE_NUMBERS or size.numel() > len(shape) or tuple(size.flatten().tolist()) != shape
    elif place.name == "img_in.weight" and "down" in tensors:
        wider = file.source.shape(tensors["down"])[1:] > shape[1:]
    if wider:
        raise DeltaError(
            f"The file makes the layer '{name}' larger than '{file.base.label}' has it (a control LoRA), and a delta "
            "keeps every shape. Bake the file into a checkpoint in its own program; nothing can be cut out of it."
        )


def _modules(names: list[str]) -> dict[str, dict[str, str]]:
    """Module → part → tensor name. Raises DeltaError for tensors that no known kind of adapter has, and for two of the
    same part."""
    modules: dict[str, dict[str, str]] = {}
    foreign = []
    ia3 = {name.removesuffix(_ON_INPUT) for name in names if name.endswith(_ON_INPUT)}
    for name in names:
        ending = next((ending for ending in _BY_LENGTH if name.endswith(ending)), None)
        stem, _, last = name.rpartition(".")
        if stem in ia3 and last in _OF_IA3:
            module, part = stem, _OF_IA3[last]
        elif ending is not None:
            module, part = name.removesuffix(ending), PARTS[ending]
        elif name.endswith(NORM_SCALE):
            module, part = name.removesuffix(".scale"), "set"
        elif whole := _WHOLE.fullmatch(name):
            module, part = whole[1], "set" if whole[2] == "weight" else "set_bias"
        else:
            foreign.append(name)
            continue
        if (other := modules.setdefault(module, {}).setdefault(part, name)) != name:
            raise DeltaError(
                f"The file has two tensors for one thing, '{other}' and '{name}'. Get it again from where it came from."
            )
    for ending, what in _UNREADABLE.items():
        if any(name.endswith(ending) for name in foreign):
            raise DeltaError(f"The file holds {what}: this cannot be converted. Bake it into a checkpoint in its own "
                             "program, and extract the difference of the checkpoints.")  # fmt: skip
    if foreign:
        raise DeltaError(f"The file has {len(foreign)} tensors of an unknown kind, such as '{foreign[0]}'.")
    return modules


def _number(source: Source, name: str) -> float:
    try:
        number = float(source.tensor(name))
    except (RuntimeError, TypeError, ValueError) as error:  # several numbers, none, or a kind that is no real number
        raise DeltaError(f"'{name}' is not one number. Get the file again from where it came from.") from error
    if not math.isfinite(number):
        raise DeltaError(f"'{name}' is {number}. Get the file again from where it came from.")
    return number
