"""Deltas in diffusers models: loading one, renaming one that was trained there, and preparing a pipeline for training.

    handle = load_delta(pipeline, "style.safetensors", strength=0.8)
    ...
    handle.remove()                                        # every bit is back

    optimizer = SaRA(pipeline.unet, threshold=2e-3)        # the usual training loop of diffusers
    ...
    comfyui_delta(pipeline.unet, optimizer.delta()).save("style.safetensors")

diffusers is imported only where a pipeline is opened; it is the caller's otherwise.
"""

import os
from pathlib import Path
from typing import NamedTuple

import torch

from . import names
from .base import PREFIX
from .delta import AppliedDelta, SparseDelta
from .errors import TrainingError, UnsupportedModelError
from .image_folder import CaptionedImage
from .names_diffusers import diffusers_parts, family, to_comfy, to_diffusers

FAMILY = "sara.family"
# PEFT puts a layer that it adds a LoRA to into another one, under this name.
_INSIDE_LORA = ".base_layer."
_TRAINABLE_PIPELINE = "StableDiffusionPipeline"
_PREDICTIONS = ("epsilon", "v_prediction")


def load_delta(
    pipeline_or_model, path_or_delta: str | os.PathLike | SparseDelta, strength: float = 1.0
) -> AppliedDelta:
    """Change the weights of a diffusers pipeline's UNet or transformer, or of such a model, in place:
    round(float32(weight) + strength · Δ). Deltas add up with each other and with LoRAs.

    path_or_delta: with ComfyUI's weight names, as every delta file has them, or with the model's own

    Returns a handle whose remove() restores every bit; remove the deltas of a model last in, first out.
    Raises DeltaError for a file that is no sound delta, or one of another model, and a strength that is not finite;
    UnsupportedModelError for a pipeline without such a model, and by name for weights that cannot be written exactly.
    """
    model = denoiser(pipeline_or_model)
    delta = path_or_delta if isinstance(path_or_delta, SparseDelta) else SparseDelta.load(path_or_delta)
    weights = _weights(model)
    return _with_own_names(delta, weights).apply_(weights, strength)


def comfyui_delta(pipeline_or_model, delta: SparseDelta) -> SparseDelta:
    """A delta that was trained on a diffusers model, with ComfyUI's names: to be saved as a file for everyone.

    delta: with the model's own names, as SaRA(model, …).delta() gives them

    Raises UnsupportedModelError for a model whose names in ComfyUI are not known; its delta can be saved as it is, and
    loads into diffusers alone. Raises DeltaError if the delta is not of this model.
    """
    model = denoiser(pipeline_or_model)
    shapes = _shapes(_weights(model))
    parts = diffusers_parts(shapes)
    if not parts:
        raise UnsupportedModelError(
            f"ComfyUI's names for the weights of a {type(model).__name__} are not known: save the delta as it is, for "
            "use with diffusers alone. They are known for Stable Diffusion 1 to 3.5, SDXL and Flux."
        )
    entries = {PREFIX + name: entry for name, entry in to_comfy(delta.entries, parts).items()}
    known = family(shapes)
    return SparseDelta(entries, {**delta.metadata, FAMILY: known} if known else delta.metadata)


def denoiser(pipeline_or_model) -> torch.nn.Module:
    """The UNet or transformer of a pipeline; a model itself, without torch.compile's wrapper.

    Raises UnsupportedModelError for a pipeline that has neither.
    """
    model = pipeline_or_model
    if not isinstance(model, torch.nn.Module):
        model = getattr(model, "unet", None) or getattr(model, "transformer", None)
    if not isinstance(model, torch.nn.Module):
        raise UnsupportedModelError(
            f"{type(pipeline_or_model).__name__} has no UNet and no transformer in memory: give a diffusers pipeline "
            "that has one, or the model itself."
        )
    return getattr(model, "_orig_mod", model)


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name.replace(_INSIDE_LORA, "."): weight for name, weight in model.state_dict(keep_vars=True).items()}


def _shapes(weights: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def _with_own_names(delta: SparseDelta, weights: dict[str, torch.Tensor]) -> SparseDelta:
    parts = diffusers_parts(_shapes(weights))
    if not parts or all(name in weights for name in delta.entries):
        return delta
    known = names.resolve(delta.entries, {part.name for part in parts.values()}, "this diffusers model")
    entries = to_diffusers({known[name]: entry for name, entry in delta.entries.items()}, parts)
    return SparseDelta(entries, delta.metadata)


class Sample(NamedTuple):
    """latent: fp32 [channels, height, width], scaled as the model sees it; text: fp32 [tokens, width], the encoded
    caption; both on the CPU"""

    latent: torch.Tensor
    text: torch.Tensor


class Prepared(NamedTuple):
    """What is trained: the UNet, in fp32 on the CPU; schedule: a DDPMScheduler with the model's noise levels and
    prediction type; samples: the images, encoded"""

    unet: torch.nn.Module
    schedule: object
    samples: list[Sample]


@torch.no_grad()
def prepare_training(
    folder: str | os.PathLike, images: list[CaptionedImage], resolution: int, device: torch.device
) -> Prepared:
    """Open the pipeline in a diffusers folder and encode the images and captions on `device`.

    resolution: side of the squares, in pixels, that images are cut and scaled to

    Raises TrainingError if diffusers is missing, the folder cannot be read, an image is damaged or the resolution does
    not suit the model; UnsupportedModelError for pipelines other than those of Stable Diffusion 1 and 2.
    """
    pipeline = _open_pipeline(Path(folder))
    schedule = _noise_schedule(pipeline)
    if resolution <= 0 or resolution % pipeline.vae_scale_factor:
        raise TrainingError(f"The resolution must be a multiple of {pipeline.vae_scale_factor}, not {resolution}.")
    pipeline.vae.to(device)
    pipeline.text_encoder.to(device)
    texts = {image.caption: None for image in images}
    for caption in texts:
        texts[caption] = pipeline.encode_prompt(caption, device, 1, False)[0][0].float().cpu()
    samples = [Sample(_latent(pipeline, image.path, resolution, device), texts[image.caption]) for image in images]
    return Prepared(pipeline.unet, schedule, samples)


def _open_pipeline(folder: Path):
    diffusers = _diffusers()
    if not (folder / "model_index.json").is_file():
        raise TrainingError(
            f"'{folder}' is no diffusers folder (it has no model_index.json): give the folder of a whole pipeline. A "
            "single checkpoint file can be made into one with diffusers: StableDiffusionPipeline.from_single_file(…)"
            ".save_pretrained(…)."
        )
    try:
        kind = diffusers.DiffusionPipeline.load_config(folder)["_class_name"]
        if kind != _TRAINABLE_PIPELINE:
            raise UnsupportedModelError(
                f"'{folder.name}' is a {kind}: this command trains Stable Diffusion 1 and 2. Train other models in "
                "ComfyUI with SaRA Train, or in a diffusers script of your own with sara_core.SaRA."
            )
        return diffusers.StableDiffusionPipeline.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(
            f"The model in '{folder}' cannot be opened ({error}). Its weights must be .safetensors files: download or "
            "save it again."
        ) from error


def _diffusers():
    try:
        import diffusers
    except ImportError as error:
        raise TrainingError(
            f"This needs diffusers ({error}): pip install diffusers transformers accelerate pillow."
        ) from error
    return diffusers


def _noise_schedule(pipeline):
    config, unet = pipeline.scheduler.config, pipeline.unet.config
    prediction = config.get("prediction_type", "epsilon")
    if "beta_schedule" not in config or prediction not in _PREDICTIONS:
        raise UnsupportedModelError(
            "This command trains models that predict noise or velocity, and this one does neither: train it in ComfyUI "
            "with SaRA Train."
        )
    if unet.in_channels != pipeline.vae.config.latent_channels:
        raise UnsupportedModelError(
            "This model takes a picture beside the noise (as for inpainting), which training cannot give it."
        )
    return _diffusers().DDPMScheduler.from_config(config)


def _latent(pipeline, path: Path, resolution: int, device: torch.device) -> torch.Tensor:
    try:
        image = _diffusers().utils.load_image(str(path))
    except (OSError, ValueError, SyntaxError) as error:
        raise TrainingError(f"The image '{path.name}' is damaged or no image: {error}") from error
    pixels = pipeline.image_processor.preprocess(image, resolution, resolution, resize_mode="crop")
    latent = pipeline.vae.encode(pixels.to(device)).latent_dist.mode()[0] * pipeline.vae.config.scaling_factor
    return latent.cpu()
