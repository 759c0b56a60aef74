"""Reading adapter files: LoRA and LyCORIS, and the weight differences that ComfyUI writes (`.diff`, `.diff_b`)."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from ...delta.translate import dense_to_comfy, dense_to_diffusers
from ...errors import DeltaError
from ...files.source import Source
from ...models.base import Base
from ...names.families import FAMILIES, family_of
from ...names.parts import Part
from ...names.resolve import BIAS, PREFIX, WEIGHT
from ...names.wrapping import without_prefix
from ...wording import listed
from .alpha import Alpha
from .change import change, check_one_kind
from .ia3 import are_of_outputs
from .kinds import unreadable
from .modules import modules_of
from .names import known_name, places
from .other_parts import in_foreign_blocks, only, part_of, report
from .peft_settings import Alphas
from .readings import COMFYUI, TRAINED, Difference, as_comfyui
from .remainder import PARTS as REMAINDER
from .remainder import remainder
from .text import TextBase

# Of a module's bias: part in the file → part of the bias' own change.
_OF_BIAS = {"bias": "diff", "set_bias": "set"}
_NOT_OF_WEIGHT = {"shape", "alpha", "lora_bias", *_OF_BIAS}
_WHOLE_NUMBERS = (torch.int64, torch.int32)


@dataclass
class AdapterFile:
    """What an adapter file changes, without having read it.

    alphas: of modules that have none of their own in the file; reading: one of readings.READINGS
    modules: by ComfyUI's weight name without prefix, the file's modules that are parts of it, each a part of its own
    left_out: names of the file's modules and tensors that the base has no place for
    difference: from the other reading; complete as soon as `changes` has been through once
    prefix: of the weight names in a delta; text: what the file changes of text encoders
    """

    source: Source
    base: "Base | TextBase"
    alphas: Alphas
    reading: str = TRAINED
    prefix: str = PREFIX
    modules: Mapping[str, list["_Module"]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    difference: Difference | None = None
    text: "AdapterFile | None" = None

    def changes(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, dense change in float32) of each weight, one at a time.

        Raises DeltaError if a module's tensors do not make a change of its weight.
        """
        difference = Difference() if self.difference is None else None
        for name, modules in self.modules.items():
            total = None
            for module in modules:
                one = module.change(self, difference)
                total = one if total is None else total + one
            yield self.prefix + name, total
        self.difference = self.difference or difference

    def notes(self) -> list[str]:
        """Lines for people, after the changes: what was left out, and what the other reading would have given."""
        other = None if self.difference is None else self.difference.text(self.reading)
        return report(self.left_out, self.base.label) + ([] if other is None else [other])

    @property
    def elements(self) -> int:
        """Number of elements of all weights that it changes."""
        return sum(math.prod(self.base.shapes[name]) for name in self.modules)


@dataclass
class _Module:
    """One module of the file.

    tensors: part (of PARTS) → name in the file; place: of its weight; alpha: where the file has none
    """

    name: str
    tensors: Mapping[str, str]
    place: Part
    alpha: Alpha

    def change(self, file: AdapterFile, difference: Difference | None) -> torch.Tensor:
        """The change of the whole weight that this part of it makes. difference: to count into, if it is wanted"""
        shape = file.base.shapes[self.place.name]
        part_shape = self.place.part_shape(shape) or ()
        tensors = {part: file.source.tensor(name) for part, name in self.tensors.items() if part != "alpha"}
        from_settings = "alpha" not in self.tensors
        alpha = self.alpha if from_settings else Alpha(_number(file.source, self.tensors["alpha"]))
        trained = tensors, alpha
        *shown, ways = as_comfyui(tensors, alpha, from_settings, part_shape[0] if part_shape else 0)
        chosen, other = (shown, trained) if file.reading == COMFYUI else (trained, shown)
        of_part = self._computed(*chosen, part_shape, file.base)
        if difference is not None:
            difference.add(of_part)
            if ways:
                difference.add_between(of_part, self._computed(*other, part_shape, file.base), ways)
        of_part = dense_to_comfy(of_part, self.place)
        if part_shape == shape:
            return of_part
        whole = torch.zeros(shape)
        begin = self.place.begin(part_shape)
        whole.view(-1)[begin : begin + of_part.numel()] = of_part.reshape(-1)
        return whole

    def _computed(
        self, tensors: Mapping[str, torch.Tensor], alpha: Alpha, shape: tuple[int, ...], base: Base
    ) -> torch.Tensor:
        factors = {part: tensor for part, tensor in tensors.items() if part not in REMAINDER}
        try:
            made = change(self.name, factors, shape, alpha, lambda: self._weight(base))
        except DeltaError:
            base.weight(self.place.name)  # which says so, where it is quantised in a shape of its own
            raise
        if len(factors) == len(tensors):
            return made
        # By whoever applies it at all it is scaled like the LoRA that it is left from.
        return made + remainder(self.name, tensors, shape) * alpha.scale(factors["down"].shape[0])

    def _weight(self, base: Base) -> torch.Tensor:
        """The base's values of this part, float32, as the file's own model has them."""
        return dense_to_diffusers(base.weight(self.place.name), self.place).float()


def opened_adapter(source: Source, base: Base, alphas: Alphas, reading: str = TRAINED) -> AdapterFile:
    """The adapter in a file, its modules found in the base, and what the base has no place for left out.

    alphas: what stands beside the file; reading: one of readings.READINGS
    Raises DeltaError for kinds of adapters that cannot be read, for a weight that is changed twice, and if what can be
    read is the lesser part of the file, or nothing.
    """
    if error := unreadable(name for name in source.names if part_of(name) is None):
        raise error
    modules, unknown = modules_of(source.names)
    known = places(base)
    file = AdapterFile(source, base, alphas, reading)
    text = file.text = AdapterFile(source, TextBase(base, source), alphas, reading, prefix="")
    missing = []
    for name, tensors in modules.items():
        if (own := known_name(name, known)) is not None:
            _add(file, name, tensors, known[own])
        elif (place := text.base.place(name, tensors)) is not None:
            _add(text, name, tensors, place)
        else:
            missing.append(name)
    for one in (file, text):
        _check_overlaps(one)
    file.left_out += text.left_out
    file.left_out += missing + unknown
    _check_what_is_left(file, modules, unknown, known)
    return file


def _check_what_is_left(
    file: AdapterFile, modules: Mapping[str, Mapping[str, str]], unknown: list[str], known: Mapping[str, Part]
) -> None:
    """Raises DeltaError if what was found is nothing, or less than what is of another model or an unknown kind."""
    read = {module.name for parts in file.modules.values() for module in parts}
    of_model = [name for name in file.left_out if name in modules and part_of(name) is None]
    unread = {stem for name in unknown if (stem := _module_in(name, known)) is not None} - read
    if len(unread) > len(read):
        raise DeltaError(
            f"The file has {len(unknown)} tensors of an unknown kind, such as '{unknown[0]}'. Bake it into a "
            "checkpoint in its own program, and extract the difference of the checkpoints."
        )
    elsewhere = [name for name in modules if part_of(name) is not None]
    if not read and elsewhere and not of_model:
        if file.text.modules:
            return
        raise DeltaError(
            f"The file changes only {only(elsewhere)}; a SaRA delta changes the diffusion model, and text encoders "
            "whose names are known."
        )
    if read and of_model and (other := _other_family(file, modules)) is not None:
        raise DeltaError(
            f"The file is for {other}, and '{file.base.label}' is {file.base.family}: {listed(of_model)} do not exist "
            "there. Give the base model that it was trained on."
        )
    foreign = of_model if not read else in_foreign_blocks(of_model, known)
    if not read or len(foreign) > len(read):
        raise DeltaError(
            f"{len(foreign or file.left_out)} of the file's {len(modules) + len(unknown)} modules do not exist in "
            f"'{file.base.label}': {listed(foreign or file.left_out)}. Give the base model that it was trained on."
        )


def _other_family(file: AdapterFile, modules: Mapping[str, Mapping[str, str]]) -> str | None:
    """What family of another layout than the base's the file is for, as far as its names tell; else None."""
    shapes = {}
    for name, tensors in modules.items():
        sides = [file.source.shape(tensors[part]) for part in ("up", "down") if part in tensors]
        shapes[without_prefix(name) + WEIGHT] = (*sides[0][:1], *sides[1][1:]) if len(sides) == 2 else ()
    try:
        found = family_of(shapes)
    except DeltaError:
        return None
    own = FAMILIES.get(file.base.family)
    return None if None in (found, own) or found.names is own.names else found.name


def _module_in(name: str, known: Mapping[str, Part]) -> str | None:
    """The module of the base whose name a tensor's begins with."""
    while name := name.rpartition(".")[0]:
        if known_name(name, known) is not None:
            return name
    return None


def _check_overlaps(file: AdapterFile) -> None:
    """Raises DeltaError for two modules of the file that change the same elements: one weight under two names."""
    for modules in file.modules.values():
        ends = sorted(modules, key=lambda module: module.place.first / module.place.whole)
        for one, other in zip(ends, ends[1:]):
            if (one.place.first + one.place.size) * other.place.whole > other.place.first * one.place.whole:
                raise DeltaError(
                    f"The file changes one weight under two names, '{one.name}' and '{other.name}', and programs "
                    "differ in which of them they apply. Save it again with one of them."
                )


def _add(file: AdapterFile, name: str, tensors: dict[str, str], place: Part) -> None:
    alpha = file.alphas.of(name)
    _check_size(file, name, tensors, place)
    if "on_input" in tensors:
        channels = "inputs" if _number(file.source, tensors["on_input"]) else "outputs"
        tensors = {channels: tensors["factors"]} if "factors" in tensors else {}
    if "mid" in tensors or "down" not in tensors:  # a remainder holds no changes then, or is of nothing: remainder.py
        file.left_out += [tensors[part] for part in REMAINDER if part in tensors]
        tensors = {part: found for part, found in tensors.items() if part not in REMAINDER}
    scale = {"alpha": tensors["alpha"]} if "alpha" in tensors else {}
    weight = {part: found for part, found in tensors.items() if part not in _NOT_OF_WEIGHT}
    of_bias = _of_bias(file, name, tensors, place, scale)
    check_one_kind(name, weight)
    check_one_kind(f"{name}{BIAS}", of_bias)
    if weight:
        file.modules.setdefault(place.name, []).append(_Module(name, weight | scale, place, alpha))
    if of_bias:
        bias = place._replace(name=place.name.removesuffix(WEIGHT) + BIAS)
        if bias.name not in file.base.shapes:
            raise DeltaError(f"'{name}' has no bias in '{file.base.label}'. Give the base that the file was made for.")
        file.modules.setdefault(bias.name, []).append(_Module(name, of_bias, bias, alpha))
    if not weight and not of_bias:
        file.left_out += tensors.values()


def _of_bias(
    file: AdapterFile, name: str, tensors: Mapping[str, str], place: Part, scale: Mapping[str, str]
) -> dict[str, str]:
    """What a module changes of its layer's bias: part → name in the file."""
    of_bias = {made: tensors[part] for part, made in _OF_BIAS.items() if part in tensors}
    if "lora_bias" in tensors:
        beside = {"beside": tensors["down"]} if "down" in tensors else {}
        of_bias |= {"lora_bias": tensors["lora_bias"]} | beside | scale
    if "ia3" in tensors:
        shape = place.part_shape(file.base.shapes[place.name]) or ()
        try:
            outputs = are_of_outputs(file.source.shape(tensors["ia3"]), shape)
        except IndexError as error:
            raise DeltaError(
                f"The file is an (IA)³ of PEFT, and whether its '{name}' is of the layer's inputs or outputs, which "
                "are as many, does not stand in it. Merge it with PEFT (merge_and_unload), save that model, and make a "
                "delta of it and the model."
            ) from error
        if outputs and place.name.removesuffix(WEIGHT) + BIAS in file.base.shapes:
            of_bias |= {"ia3": tensors["ia3"]}
    return of_bias


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


def _number(source: Source, name: str) -> float:
    try:
        number = float(source.tensor(name))
    except (RuntimeError, TypeError, ValueError) as error:  # several numbers, none, or a kind that is no real number
        raise DeltaError(f"'{name}' is not one number. Get the file again from where it came from.") from error
    if not math.isfinite(number):
        raise DeltaError(f"'{name}' is {number}. Get the file again from where it came from.")
    return number
