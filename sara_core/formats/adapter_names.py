"""The names that adapter files (LoRA, LyCORIS, weight differences) give the modules of a diffusion model."""

from collections.abc import Iterable

from ..base import PREFIX, Base
from ..names_parts import Part

_WEIGHT = ".weight"
# What trainers put before a module's name; after the underscore every dot of the name is one too.
_COMFY, _COMFY_FLAT = (PREFIX, "model." + PREFIX, ""), ("lora_unet_", "lycoris_")
_DIFFUSERS = ("unet.", "transformer.", "base_model.model.", "unet.base_model.model.", "")
_DIFFUSERS_FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")
_TEXT_ENCODER = (
    "lora_te", "lycoris_te", "lora_prior_te", "text_encoder", "clip_l.", "clip_g.", "clip_h.", "t5xxl.",
    "cond_stage_model.", "conditioner.",
)  # fmt: skip


def places(base: Base) -> dict[str, Part]:
    """Every name that a file may have for a module (or a bare parameter) of the base → the place of its weight."""
    found: dict[str, Part] = {}
    for name in base.shapes:
        module = name.removesuffix(_WEIGHT)
        for alias in _aliases(module, _COMFY, _COMFY_FLAT):
            found[alias] = Part(name)
    for own, part in base.parts.items():
        if own.endswith(_WEIGHT):
            module = own.removesuffix(_WEIGHT)
            for alias in _aliases(module, _DIFFUSERS, _DIFFUSERS_FLAT):
                found.setdefault(alias, part)
            if ".to_" in module:
                # Early diffusers kept a LoRA in the attention's processor, and left the 0 of to_out out.
                processor = module.replace(".to_", ".processor.to_").removesuffix(".0")
                found |= {prefix + processor: part for prefix in ("", "unet.")}
    return found


def is_text_encoder(module: str) -> bool:
    """Whether a module's name in an adapter file is one of a text encoder, which a delta does not hold."""
    return module.startswith(_TEXT_ENCODER)


def _aliases(module: str, prefixes: Iterable[str], flat_prefixes: Iterable[str]) -> Iterable[str]:
    flat = module.replace(".", "_")
    return (*(prefix + module for prefix in prefixes), *(prefix + flat for prefix in flat_prefixes))
