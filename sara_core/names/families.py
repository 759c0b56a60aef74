"""The families of models that are known, one record each: adding one to FAMILIES is all that a new family needs here.

What hosts call a family's models they know themselves (ComfyUI's classes: nodes/host/family.py), and how a network is
called while it trains without a host is said where that is done (pipelines/families.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from .parts import Part
from .qwen_image import is_qwen_image
from .recognition import FLUX2_LAYOUT, FLUX_LAYOUT, SD3_LAYOUT, Shapes, is_of
from .table import TableNames
from .transformer import FLUX, FLUX2, FLUX2_ALIASES, FLUX_ALIASES, SD3Names
from .unet import UNetNames, has_way_up, is_unet
from .unet_family import of_unet
from .wan import WanNames, is_wan, is_wan_5b
from .z_image import ZImageNames, is_z_image


class Names(Protocol):
    """Translates the names of one model. ComfyUI's are without the prefix `diffusion_model.`"""

    def to_comfy(self, name: str) -> Part | None:
        """The place of a diffusers parameter, or None for a name that this model cannot have. Raises DeltaError where
        the model's other names would have to tell, and do not."""

    def to_diffusers(self, name: str) -> dict[str, Part]:
        """The diffusers parameters that make up a parameter of ComfyUI's, with their places; empty for a name that this
        model cannot have. Raises as `to_comfy`."""


@dataclass(frozen=True)
class Family:
    """Models that a delta of one fits another of.

    name: in the words of its users; None for models that are told by their layout alone
    is_of: whether parameters, by name → shape, all of a model or some of them and in either naming, are of this family.
        Raises DeltaError where two families have them.
    must_have: whether parameters are all that a model of this family must have, which decides for a model that is there
        as a whole; by default whatever `is_of` takes for it
    names: makes the translator for a model of these parameters; None where diffusers and ComfyUI have the same names
    aliases: makes a translator for further diffusers names that adapter files have for its weights
    architecture: the identifier in `modelspec.architecture` before the slash; by default the name in small letters with
        hyphens
    merge_presets: what to call a part of the model that is merged on its own → words in the names of its weights
    """

    name: str | None
    is_of: Callable[[Shapes], bool]
    names: Callable[[Shapes], Names] | None
    aliases: Callable[[Shapes], Names] | None = None
    architecture: str | None = None
    merge_presets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    must_have: Callable[[Shapes], bool] = lambda shapes: True


_unet = partial(Family, names=UNetNames, must_have=has_way_up)

# From the general to the particular: the last that says yes is the family. The architectures are the identifiers of the
# specification, and those that trainers write for younger families. Depths: SDXL itself has 2, 2, 10 and 10.
_KNOWN = (
    _unet("SD1.5", of_unet(768), architecture="stable-diffusion-v1"),
    _unet("SD2.1", of_unet(1024), architecture="stable-diffusion-v2"),
    # Its style and layout blocks: up_blocks.0.attentions.1 and down_blocks.2.attentions.1 in the names of InstantStyle
    # (arXiv 2404.02733), the first also in B-LoRA (arXiv 2403.14572).
    _unet(
        "SDXL", of_unet(2048), architecture="stable-diffusion-xl-v1-base",
        merge_presets={"SDXL style": ("output_blocks.1.1.",), "SDXL composition": ("input_blocks.8.1.",)},
    ),
    _unet("SDXL Refiner", of_unet(1280), architecture="stable-diffusion-xl-v1-refiner"),
    _unet("SSD-1B", of_unet(2048, (2, 2, 4, 4))),
    _unet("Segmind Vega", of_unet(2048, (1, 1, 2, 2))),
    _unet("KOALA 700M", of_unet(2048, (2, 5))),
    _unet("KOALA 1B", of_unet(2048, (2, 6))),
    Family(
        "SD3", is_of(SD3_LAYOUT), SD3Names, architecture="stable-diffusion-3", must_have=SD3_LAYOUT.has_all
    ),
    Family(
        "Flux", is_of(FLUX_LAYOUT), partial(TableNames, FLUX), partial(TableNames, FLUX_ALIASES),
        architecture="flux-1-dev", must_have=FLUX_LAYOUT.has_all,
    ),
    Family(
        "Flux.2", is_of(FLUX2_LAYOUT), partial(TableNames, FLUX2), partial(TableNames, FLUX2_ALIASES),
        must_have=FLUX2_LAYOUT.has_all,
    ),
    Family("Wan 2.1", is_wan, WanNames),
    Family("Wan 2.2", is_wan_5b, WanNames),
    Family("Z-Image", is_z_image, ZImageNames),
    Family("Qwen-Image", is_qwen_image, None),
)  # fmt: skip
# In SD's layout, of other sizes or too few names to tell: their names are known all the same.
_OTHER_UNETS = _unet(None, is_unet)

FAMILIES: dict[str, Family] = {family.name: family for family in _KNOWN}


def family_of(shapes: Shapes, whole: bool = False) -> Family | None:
    """The family that parameters, by name → shape, belong to; None for one that is not known.

    whole: these are all parameters of a model
    Raises DeltaError if the names alone do not tell.
    """
    asked = (*reversed(FAMILIES.values()), _OTHER_UNETS)
    return next((one for one in asked if (not whole or one.must_have(shapes)) and one.is_of(shapes)), None)
