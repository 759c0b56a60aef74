"""Which family of models a MODEL belongs to, in the words its users know.

A family that the library can tell by the names of its weights has a record there (sara_core/names/families.py); what
classes ComfyUI has for it is said here, because the library knows no host.
"""

from collections.abc import Mapping

from ...sara_core.delta import metadata as keys

# By the class of ComfyUI's model configuration. Variants share a name when a delta of one fits the other.
NAMES = {
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
}


def model_family(model) -> str:
    """Family of a MODEL (a ModelPatcher): "SD1.5", "SDXL", "Flux" …, or the host's own name for rarer ones."""
    config = type(model.model.model_config).__name__
    return NAMES.get(config, config)


def delta_family(metadata: Mapping[str, str]) -> str | None:
    """Family that a delta's metadata says it was trained on, if it says so."""
    return metadata.get(keys.FAMILY)
