"""What diffusers makes of a LoRA file: with the pipeline's own functions, on a model and its text encoders."""

import copy
import inspect
from pathlib import Path

import diffusers
import torch

from benchmarks.readers_.cases import Case, changes_between
from benchmarks.readers_.text_encoders import PLACES, own_weights

PIPELINES = {
    "SD1.5": diffusers.StableDiffusionPipeline, "SDXL": diffusers.StableDiffusionXLPipeline,
    "SD3": diffusers.StableDiffusion3Pipeline, "Flux": diffusers.FluxPipeline, "Flux.2": diffusers.Flux2Pipeline,
    "Wan 2.1": diffusers.WanPipeline, "Z-Image": diffusers.ZImagePipeline,
    "Qwen-Image": diffusers.QwenImagePipeline,
}  # fmt: skip


def changes_in(case: Case, path: Path) -> dict[str, torch.Tensor]:
    """What load_lora_weights and fuse_lora change in the case's models, by diffusers' names. Raises what they raise."""
    model = copy.deepcopy(case.model)
    encoders = copy.deepcopy(case.encoders)
    before = {name: weight.clone() for name, weight in {**model.state_dict(), **case.text}.items()}
    kind = PIPELINES[case.family]
    place = "unet" if isinstance(model, diffusers.UNet2DConditionModel) else "transformer"
    # The rest of a pipeline has no part in it.
    others = dict.fromkeys(
        name for name, parameter in inspect.signature(kind).parameters.items() if parameter.default is parameter.empty
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    of_text = dict(zip(PLACES, encoders.values()))
    pipeline = kind(**{**others, "scheduler": scheduler, place: model, **of_text})
    pipeline.load_lora_weights(str(path), adapter_name="tried")
    pipeline.fuse_lora(components=[place, *(name for name in of_text if name in pipeline._lora_loadable_modules)])
    pipeline.unload_lora_weights()
    after = model.state_dict()
    for encoder, text in encoders.items():
        after |= own_weights(encoder, text)
    return changes_between(before, after)
