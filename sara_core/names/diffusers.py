"""Where each of diffusers' parameters lies in ComfyUI's weights, some of which are several of them, fused.

ComfyUI's models have the names of the original (LDM) checkpoints; without the prefix `diffusion_model.` throughout
this file.
"""

from collections.abc import Collection, Mapping

from ..errors import DeltaError
from ..wording import listed
from .families import Family, family_of
from .parts import Part

Shape = tuple[int, ...]


def diffusers_parts(shapes: Mapping[str, Shape], whole: bool = False) -> dict[str, Part]:
    """The place of every diffusers parameter of a model, by its name.

    shapes: name → shape of all parameters of the model, or of some of them, in either naming. Names that models of
    its family do not have are left out; a model of a family that is not known here gives nothing.
    whole: these are all parameters of a model
    Raises DeltaError if the names alone do not tell which model they belong to.
    """
    return parts_in(family_of(shapes, whole), shapes)


def parts_in(known: Family | None, shapes: Mapping[str, Shape]) -> dict[str, Part]:
    """As `diffusers_parts`, of a model whose family is known already."""
    if known is None or known.names is None:
        return {}
    translator = known.names(shapes)
    parts: dict[str, Part] = {}
    for name in shapes:
        place = translator.to_comfy(name)
        parts |= translator.to_diffusers(name) if place is None else {name: place}
    return parts


def parts_of_all(known: Family | None, shapes: Mapping[str, Shape]) -> dict[str, Part]:
    """As `parts_in`, of a whole model; under diffusers' names also of what it has beside its family's weights, which is
    called the same everywhere (AnimateDiff's motion modules)."""
    parts = parts_in(known, shapes)
    if is_diffusers(shapes, parts):
        parts |= {name: Part(name) for name in shapes.keys() - parts.keys()}
    return parts


def put_around(shapes: Mapping[str, Shape]) -> str | None:
    """The name of what somebody has put around a model, or around layers in it: the word without which more of its
    names are those of a known family. None if there is no such word.

    shapes: name → shape of all its parameters
    """

    def known_names(candidate: Mapping[str, Shape]) -> tuple[bool, int]:
        try:
            known = family_of(candidate, whole=True)
        except DeltaError:  # two families have them
            return False, 0
        return known is not None, len(parts_in(known, candidate))

    words = {word for name in shapes for word in name.split(".")[:-1] if not word.isdigit()}
    already = known_names(shapes)
    for word in sorted(words):
        without = {".".join(part for part in name.split(".") if part != word): shape for name, shape in shapes.items()}
        if len(without) == len(shapes) and known_names(without) > already:
            return word
    return None


def diffusers_aliases(shapes: Mapping[str, Shape]) -> dict[str, Part]:
    """Further diffusers names that adapter files have for a model's weights, with their places.

    shapes: ComfyUI's name → shape of all its parameters
    """
    known = family_of(shapes, whole=True)
    if known is None or known.aliases is None:
        return {}
    translator = known.aliases(shapes)
    aliases: dict[str, Part] = {}
    for name in shapes:
        aliases |= translator.to_diffusers(name)
    return aliases


def family(shapes: Mapping[str, Shape]) -> str | None:
    """The model's family in the words its users know, as far as the names and shapes tell."""
    known = family_of(shapes)
    return None if known is None else known.name


def is_diffusers(names: Collection[str], parts: Mapping[str, Part]) -> bool:
    """Whether a model's names are diffusers', of a family whose names differ from ComfyUI's. parts: diffusers_parts"""
    return any(name in names and part.name not in names for name, part in parts.items())


def check_known(names: Collection[str], known: Collection[str]) -> None:
    """Raise DeltaError if a name is not known."""
    if missing := set(names) - set(known):
        raise DeltaError(
            f"{len(missing)} of {len(names)} weights do not exist in this model: {listed(missing)}. The file was made "
            "for another model: give the base model it was made for."
        )
