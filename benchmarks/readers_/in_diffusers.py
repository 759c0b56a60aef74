"""What diffusers makes of a LoRA file: with the pipeline's own functions, on a model alone."""

import copy
import inspect
from pathlib import Path

import diffusers
import torch

from benchmarks.readers_.cases import Case, changes_between

PIPELINES = {
    "SD1.5": diffusers.StableDiffusionPipeline, "SDXL": diffusers.StableDiffusionXLPipeline,
    "SD3": diffusers.StableDiffusion3Pipeline, "Flux": diffusers.FluxPipeline, "Flux.2": diffusers.Flux2Pipeline,
    "Wan 2.1": diffusers.WanPipeline, "Z-Image": diffusers.ZImagePipeline,
    "Qwen-Image": diffusers.QwenImagePipeline,
}  # fmt: skip


def changes_in(case: Case, path: Path) -> dict[str, torch.Tensor]:
    """What load_lora_weights and fuse_lora change in the case's model, by diffusers' names. Raises what they raise."""
    model = copy.deepcopy(case.model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    kind = PIPELINES[case.family]
    place = "unet" if isinstance(model, diffusers.UNet2DConditionModel) else "transformer"
    # The rest of a pipeline has no part in it.
    others = dict.fromkeys(
        name for name, parameter in inspect.signature(kind).parameters.items() if parameter.default is parameter.empty
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    pipeline = kind(**{**others, "scheduler": scheduler, place: model})
    pipeline.load_lora_weights(str(path), adapter_name="tried")
    model.fuse_lora()
    model.unload_lora()
    return changes_between(before, model.state_dict())
