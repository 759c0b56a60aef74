"""The loaded model as deltas see it: its parameters by the names that a checkpoint has for them."""

import torch

from ...fitting import Model
from ...in_place import Place

# What the host puts around a text encoder and around its embedding, beside which it adds a vector of a user's.
_WRAPPED = "wrapped"
_LEFT_OUT = ("first_stage_model", "model_ema")


def model_of(sd_model: torch.nn.Module) -> Model:
    """See Model."""
    info = getattr(sd_model, "sd_checkpoint_info", None)
    return Model(sd_model, getattr(info, "name_for_extra", "this checkpoint"), family_of(sd_model), _places(sd_model))


def family_of(sd_model: torch.nn.Module) -> str:
    """In the words of sara_core/names/families.py."""
    if getattr(sd_model, "is_sdxl", False):
        embedders = getattr(getattr(sd_model, "conditioner", None), "embedders", ())
        # The refiner has OpenCLIP alone, at the place where SDXL has CLIP-L.
        first = getattr(embedders[0], _WRAPPED, embedders[0]) if len(embedders) else None
        return "SDXL Refiner" if hasattr(first, "model") else "SSD-1B" if sd_model.is_ssd else "SDXL"
    return "SD3" if getattr(sd_model, "is_sd3", False) else "SD2.1" if getattr(sd_model, "is_sd2", False) else "SD1.5"


def _places(sd_model: torch.nn.Module) -> dict[str, Place]:
    places: dict[str, Place] = {}
    modules = dict(sd_model.named_modules())
    for path, module in modules.items():
        words = path.split(".")
        if words[0] in _LEFT_OUT:
            continue
        # The host writes the last projection of such attention in the attention's name, not in the projection's.
        above = modules.get(path.rpartition(".")[0])
        layers = (module, above) if isinstance(above, torch.nn.MultiheadAttention) else (module,)
        own = ".".join(word for word in words if word != _WRAPPED)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places[f"{own}.{name}" if own else name] = Place(parameter, layers)
    return places
