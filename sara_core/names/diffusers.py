"""Where each of diffusers' parameters lies in ComfyUI's weights, some of which are several of them, fused.

ComfyUI's models have the names of the original (LDM) checkpoints; without the prefix `diffusion_model.` throughout
this file.
"""

from collections.abc import Collection, Mapping

from ..errors import DeltaError
from ..wording import listed
from .parts import Part
from .transformer import FLUX, FLUX2, TransformerNames, table_of_aliases, transformer_table
from .unet import UNetNames, is_unet
from .unet_family import unet_family

Shape = tuple[int, ...]


def diffusers_parts(shapes: Mapping[str, Shape]) -> dict[str, Part]:
    """The place of every diffusers parameter of a model, by its name.

    shapes: name → shape of all parameters of the model, or of some of them, in either naming. Names that models of
    its family do not have are left out; a model of a family that is not known here gives nothing.
    Raises DeltaError if the names alone do not tell which model they belong to.
    """
    translator = _translator(shapes)
    parts: dict[str, Part] = {}
    for name in shapes if translator else ():
        place = translator.to_comfy(name)
        parts |= translator.to_diffusers(name) if place is None else {name: place}
    return parts


def diffusers_aliases(shapes: Mapping[str, Shape]) -> dict[str, Part]:
    """Further diffusers names that adapter files have for a model's weights, with their places.

    shapes: ComfyUI's name → shape
    """
    translator = TransformerNames(table_of_aliases(transformer_table(shapes)), shapes)
    aliases: dict[str, Part] = {}
    for name in shapes:
        aliases |= translator.to_diffusers(name)
    return aliases


def family(shapes: Mapping[str, Shape]) -> str | None:
    """The model's family in the words its users know, as far as the names and shapes tell."""
    if is_unet(shapes):
        return unet_family(shapes)
    table = transformer_table(shapes)
    return None if table is None else "Flux" if table is FLUX else "Flux.2" if table is FLUX2 else "SD3"


def is_diffusers(shapes: Mapping[str, Shape]) -> bool:
    """Whether the names are diffusers', of a family whose names differ from ComfyUI's."""
    return any(name in shapes and part.name not in shapes for name, part in diffusers_parts(shapes).items())


def check_known(names: Collection[str], known: Collection[str]) -> None:
    """Raise DeltaError if a name is not known."""
    if missing := set(names) - set(known):
        raise DeltaError(
            f"{len(missing)} of {len(names)} weights do not exist in this model: {listed(missing)}. The file was made "
            "for another model: give the base model it was made for."
        )


def _translator(shapes: Mapping[str, Shape]) -> UNetNames | TransformerNames | None:
    if is_unet(shapes):
        return UNetNames(shapes)
    table = transformer_table(shapes)
    return None if table is None else TransformerNames(table, shapes)
