"""The names that adapter files (LoRA, LyCORIS, weight differences) give the modules of a diffusion model."""

import re
from collections.abc import Collection, Iterable

from ...models.base import Base
from ...names.diffusers import diffusers_aliases
from ...names.parts import Part
from ...names.resolve import PREFIX, WEIGHT
from ...names.wrapping import without_prefix
from ...names.z_image import ZImageNames

# What trainers put before a module's name; after the underscore every dot of the name is one too.
_COMFY = (PREFIX, "model." + PREFIX, "", "transformer.", "base_model.model.")
_COMFY_FLAT = ("lora_unet_", "lora_unet__", "lora_prior_unet_", "lora_transformer_", "lycoris_")
_DIFFUSERS = ("unet.", "transformer.", "base_model.model.", "unet.base_model.model.", "")
_DIFFUSERS_FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")
_FLUX_DOUBLE = re.compile(r"(double_blocks\.\d+)\.(img|txt)_attn\.(qkv|proj)\.weight")
_FLUX_SINGLE = re.compile(r"(single_blocks\.\d+)\.(linear1|linear2)\.weight")
_STREAMS = {"img": 1, "txt": 2}


def places(base: Base) -> dict[str, Part]:
    """Every name that a file may have for a module (or a bare parameter) of the base → the place of its weight."""
    found: dict[str, Part] = {}
    z_image = ZImageNames(base.shapes)  # also of models with some of its layers, whose family is another
    for name in base.shapes:
        module = name.removesuffix(WEIGHT)
        for alias in _aliases(module, _COMFY, _COMFY_FLAT):
            found[alias] = Part(name)
        for module, part in (*_flux(name, base.shapes[name]), *z_image.to_diffusers(name).items()):
            found |= dict.fromkeys(_aliases(module.removesuffix(WEIGHT), _COMFY, _COMFY_FLAT), part)
    for diffusers_name, part in (base.parts | diffusers_aliases(base.shapes)).items():
        if diffusers_name.endswith(WEIGHT):
            module = diffusers_name.removesuffix(WEIGHT)
            for alias in _aliases(module, _DIFFUSERS, _DIFFUSERS_FLAT):
                found.setdefault(alias, part)
            if ".to_" in module:
                # Early diffusers kept a LoRA in the attention's processor, and left the 0 of to_out out.
                processor = module.replace(".to_", ".processor.to_").removesuffix(".0")
                found |= {prefix + processor: part for prefix in ("", "unet.")}
    return found


def known_name(module: str, known: Collection[str]) -> str | None:
    """The name among the known ones that a module of a file has, whatever it is wrapped in; None if it has none."""
    return next((name for name in (module, without_prefix(module)) if name in known), None)


def _aliases(module: str, prefixes: Iterable[str], flat_prefixes: Iterable[str]) -> Iterable[str]:
    flat = module.replace(".", "_")
    return (*(prefix + module for prefix in prefixes), *(prefix + flat for prefix in flat_prefixes))


def _flux(name: str, shape: tuple[int, ...]) -> Iterable[tuple[str, Part]]:
    """The names that XLabs' and USO's files for Flux have for a weight, or for its rows of query, key and value."""
    if found := _FLUX_DOUBLE.fullmatch(name):
        block, stream, layer = found.groups()
        yield f"{block}.processor.{layer}_lora{_STREAMS[stream]}", Part(name)
    elif found := _FLUX_SINGLE.fullmatch(name):
        block, layer = found.groups()
        if layer == "linear2":
            yield f"{block}.processor.proj", Part(name)
        elif len(shape) == 2 and shape[1] and shape[0] % shape[1] == 0:
            fused = Part(name, 0, 3, shape[0] // shape[1])
            yield f"{block}.processor.qkv", fused
            yield f"{block}.linear1_qkv", fused
