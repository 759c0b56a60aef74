"""Small random checkpoints with text encoders in them, under the host's own names, and what the host makes of them."""

import torch

from tests.support.family_models import FAMILIES, random_state_dict

_SMALL = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 96}
# CLIP-L is smaller than CLIP-G, as in the real ones.
OPTIONS = {"clip_l_model_config": _SMALL, "clip_g_model_config": {**_SMALL, "hidden_size": 128}}
# As wide as the real ones, so that the family's models can be run on what they make.
WIDE = {
    f"{name}_model_config": {**_SMALL, "hidden_size": width} for name, width in (("clip_l", 768), ("clip_g", 1280))
}


def text_state_dict(
    family: str, seed: int = 0, dtype: torch.dtype = torch.float32, options: dict = OPTIONS
) -> dict[str, torch.Tensor]:
    """Random weights of the family's text encoders, by the names of a loaded CLIP."""
    from comfy import sd1_clip, sdxl_clip

    kind = {"SD1.5": sd1_clip.SD1ClipModel, "SDXL": sdxl_clip.SDXLClipModel}[family]
    weights = random_state_dict(lambda: kind(model_options=options), seed)
    return {name: weight.to(dtype) for name, weight in weights.items()}


def stored(family: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of text encoders by the names that the host gives them in a checkpoint file of the family."""
    from comfy import supported_models

    config = {"SD1.5": supported_models.SD15, "SDXL": supported_models.SDXL}[family]
    renamed = config.process_clip_state_dict_for_saving(object.__new__(config), dict(weights))
    return {name: weight.contiguous() for name, weight in renamed.items()}


def checkpoint(
    family: str, seed: int = 0, dtype: torch.dtype = torch.float32, options: dict = OPTIONS
) -> dict[str, torch.Tensor]:
    """A whole checkpoint file's tensors but for the VAE."""
    unet = FAMILIES[family].state_dict(seed, dtype)
    model = {f"model.diffusion_model.{name}": weight for name, weight in unet.items()}
    return model | stored(family, text_state_dict(family, seed, dtype, options))


def loaded(tensors: dict[str, torch.Tensor], options: dict = OPTIONS) -> tuple:
    """MODEL and CLIP that the host makes of a checkpoint's tensors."""
    from comfy.sd import load_state_dict_guess_config

    given = {"model_options": {"dtype": torch.float32}, "te_model_options": {**options, "dtype": torch.float32}}
    model, clip = load_state_dict_guess_config(dict(tensors), output_vae=False, **given)[:2]
    # No checkpoint holds CLIP-L's text_projection: until it is written, it is memory that may hold anything.
    clip.cond_stage_model.clip_l.transformer.text_projection.weight.data.zero_()
    return model, clip


def text_weights(clip) -> dict[str, torch.Tensor]:
    """Copies of a CLIP's weights, as they are once the host has loaded it with its patches."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([clip.patcher], force_full_load=True)
    return {name: weight.detach().clone() for name, weight in clip.cond_stage_model.state_dict().items()}
