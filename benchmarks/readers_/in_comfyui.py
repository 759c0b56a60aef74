"""What ComfyUI makes of a LoRA file: with the functions of Load LoRA, on weights of a model and its text encoders."""

from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

from benchmarks.readers_.cases import Case, changes_between
from sara_core.names.text_encoders import TEXT_PREFIX


def changes_in(case: Case, path: Path) -> dict[str, torch.Tensor]:
    """What Load LoRA changes in the case's models, by ComfyUI's names, which has to be on the path of modules.

    What it reads from a model are the names of its weights; the particular names of some families stay out, as those of
    a file of ours are general ones.
    """
    import comfy.lora
    import comfy.lora_convert

    weights = {f"diffusion_model.{name}": weight for name, weight in case.comfyui.items()}
    model = SimpleNamespace(state_dict=lambda: weights, model_config=SimpleNamespace(unet_config={}))
    text = {name.removeprefix(TEXT_PREFIX): weight for name, weight in case.text.items()}
    known = comfy.lora.model_lora_keys_unet(model, {})
    known = comfy.lora.model_lora_keys_clip(SimpleNamespace(state_dict=lambda: text), known)
    weights |= text
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(load_file(path)), known)
    after = dict(weights)
    for key, patch in patches.items():
        name = key if isinstance(key, str) else key[0]
        applied = [(1.0, patch, 1.0, None, None)]
        after[name] = comfy.lora.calculate_weight(applied, weights[name].clone(), name)
    changes = changes_between(weights, after)
    return {
        TEXT_PREFIX + name if name in text else name.removeprefix("diffusion_model."): change
        for name, change in changes.items()
    }
