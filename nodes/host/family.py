"""Which family of models a MODEL belongs to, in the words its users know.

A family that the library can tell by the names of its weights has a record there (sara_core/names/families.py); what
classes ComfyUI has for it is said here, because the library knows no host. Of classes that gave deltas their own names
once, the library has to know those names, and has the new ones beside them (sara_core/names/family_names.py).
"""

import re
from collections.abc import Mapping

from ...sara_core.delta import metadata as keys
from ...sara_core.names.family_names import FORMER_NAMES, WAN_14B, WAN_A14B, current_name

# By the class of ComfyUI's model configuration. Variants share a name when a delta of one fits the other.
NAMES = {
    **FORMER_NAMES,
    "SD15": "SD1.5",
    "SD15_instructpix2pix": "SD1.5",
    "SD20": "SD2.1",
    "SDXL": "SDXL",
    "SDXL_instructpix2pix": "SDXL",
    "SDXLRefiner": "SDXL Refiner",
    "SSD1B": "SSD-1B",
    "Segmind_Vega": "Segmind Vega",
    "KOALA_700M": "KOALA 700M",
    "KOALA_1B": "KOALA 1B",
    "SD3": "SD3",
    "Flux": "Flux",
    "FluxInpaint": "Flux",
    "FluxSchnell": "Flux",
    "Flux2": "Flux.2",
    "WAN21_T2V": "Wan 2.1",
    "WAN21_I2V": "Wan 2.1",
    "WAN22_T2V": "Wan 2.2",
    "QwenImage": "Qwen-Image",
    "ZImage": "Z-Image",
    "HunyuanVideo": "HunyuanVideo",
    "Chroma": "Chroma",
    "AuraFlow": "AuraFlow",
    "PixArtAlpha": "PixArt",
    "PixArtSigma": "PixArt",
    "LTXV": "LTX-Video",
    "Lumina2": "Lumina 2",
    "Anima": "Anima",
    "JoyImage": "JoyImage",
    "Lens": "Lens",
    "PiD": "PiD",
    "SeedVR2": "SeedVR2",
    "TripoSplat": "TripoSplat",
}
# Of Wan's models of 14B; those of 1.3B and of 5B are narrower.
_WIDTH_14B = 5120
# What Wan's models from text alone read: latents of 16 channels.
_TEXT_ONLY = 16


def model_family(model) -> str:
    """Family of a MODEL (a ModelPatcher): "SD1.5", "SDXL", "Flux" …; for a class of ComfyUI's that nobody has named yet
    the words that its own name is made of."""
    config = model.model.model_config
    kind = type(config).__name__
    if kind == "WAN21_T2V":
        return _wan(config.unet_config)
    return NAMES.get(kind) or _words(kind)


def _wan(layout: Mapping) -> str:
    """ComfyUI has one class for Wan 2.1 and for the A14B models of 2.2."""
    # Those that read a picture without CLIP's view of it are 2.2's; 2.1's have a class of their own.
    if layout.get("in_dim", _TEXT_ONLY) > _TEXT_ONLY:
        return WAN_A14B
    return WAN_14B if layout.get("dim") == _WIDTH_14B else NAMES["WAN21_T2V"]


def _words(kind: str) -> str:
    return " ".join(re.sub(r"(?<=[a-z])(?=[A-Z0-9])", " ", kind).replace("_", " ").split())


def delta_family(metadata: Mapping[str, str]) -> str | None:
    """Family that a delta's metadata says it was trained on, as it is called now, if it says so."""
    said = metadata.get(keys.FAMILY)
    return None if said is None else current_name(said)
