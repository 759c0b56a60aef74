"""A diffusers folder, images and captions → what a training needs of them: the network, its noise, encoded samples.

diffusers is imported only here, and only when a folder is opened.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..data.buckets import bucket_sizes, check_resolution, cut
from ..data.denoising_loss import Sample
from ..data.image_folder import CaptionedImage
from ..data.noising import DiffusionNoising, FlowNoising
from ..data.pictures import INSTALL, read_picture
from ..diffusers_bridge import denoiser
from ..errors import TrainingError, UnsupportedModelError
from ..memory.estimate import is_out_of_memory
from ..wording import one_of
from .families import FAMILIES, Conditions, PipelineFamily
from .variants import needed_variants

_PREDICTIONS = ("epsilon", "v_prediction")
# How many times as long as wide a picture may be before its ends are cut off.
LONGEST_STRIP = 8


class Prepared(NamedTuple):
    """What is trained: the name of its folder; the UNet or transformer, on the CPU; how it is called; its noise; the
    images, and the class images, encoded: latents of [channels, height, width] and families.Conditions, all on the CPU
    """

    name: str
    model: torch.nn.Module
    family: PipelineFamily
    noising: DiffusionNoising | FlowNoising
    samples: list[Sample]
    class_samples: list[Sample]


@torch.no_grad()
def prepare_training(
    folder: str | os.PathLike,
    images: list[CaptionedImage],
    resolution: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    class_images: Sequence[CaptionedImage] = (),
    without_captions: bool = False,
    check_model: Callable[[torch.nn.Module], None] = lambda model: None,
    buckets: bool = False,
) -> Prepared:
    """Open the pipeline in a diffusers folder and encode the images and captions on `device`.

    resolution: side of the squares, in pixels, that images are cut and scaled to
    dtype: of the network and the text encoders; pictures are encoded in fp32, as some VAEs overflow below it
    without_captions: whether the samples are to have the empty caption, too
    check_model: called with the network before anything is encoded; raises what speaks against training it
    buckets: whether images keep about their shape (data/buckets.py) instead of becoming squares

    Raises TrainingError if diffusers is missing, the folder cannot be read, an image is damaged or the resolution does
    not suit the model; UnsupportedModelError for pipelines other than those of `FAMILIES`.
    """
    pipeline, family = _open_pipeline(Path(folder), dtype)
    model = denoiser(pipeline)
    patch = pipeline.vae_scale_factor * family.patch(model)
    _check_resolution(resolution, patch, model.config.get("pos_embed_max_size"), buckets)
    check_model(model)
    noising = _flow(pipeline, (resolution // patch) ** 2) if family.is_flow else diffusion_noising(pipeline.scheduler)
    latents = _encoded_images(pipeline, (*images, *class_images), resolution, buckets, device)
    captions = {image.caption for image in (*images, *class_images)} | ({""} if without_captions else set())
    texts = _encoded_texts(pipeline, family, captions, device)

    def sample(image: CaptionedImage) -> Sample:
        size, taken, latent = latents[image.path, image.is_mirrored]
        of_size = family.size(size, taken)
        without_caption = {**texts[""], **of_size} if without_captions else None
        return Sample(latent, {**texts[image.caption], **of_size}, without_caption)

    samples, class_samples = (list(map(sample, some)) for some in (images, class_images))
    return Prepared(Path(folder).resolve().name, model, family, noising, samples, class_samples)


def _open_pipeline(folder: Path, dtype: torch.dtype) -> tuple:
    try:
        import diffusers

        if not (folder / "model_index.json").is_file():
            raise TrainingError(
                f"'{folder}' is no diffusers folder (it has no model_index.json): give the folder of a whole pipeline. "
                "A single checkpoint file can be made into one with diffusers: <pipeline>.from_single_file(…)"
                f".save_pretrained(…), where <pipeline> is {one_of(FAMILIES)}."
            )
        parts = diffusers.DiffusionPipeline.load_config(folder)
        kind = parts["_class_name"]
        if kind not in FAMILIES:
            raise UnsupportedModelError(
                f"'{folder.name}' is a {kind}: this command trains Stable Diffusion 1 to 3.5, SDXL and Flux in "
                f"folders of a {one_of(FAMILIES)}; no inpainting models, and not SDXL's refiner. Train other models "
                "in ComfyUI with SaRA Train, or in a diffusers script of your own with sara_core.SaRA."
            )
        family = FAMILIES[kind]
        # Diffusers writes what a pipeline lacks, as SD3 may its T5, as nulls, but does not read it so.
        absent = {name: None for name, part in parts.items() if part == [None, None]}
        left_out, dtypes = {**absent, **family.left_out}, {"default": dtype, "vae": torch.float32}
        options = {"local_files_only": True, "use_safetensors": True}
        in_variants = {
            part: diffusers.AutoModel.from_pretrained(
                str(folder), subfolder=part, variant=variant, dtype=dtypes.get(part, dtype), **options
            )
            for part, variant in needed_variants(folder, parts.keys() - left_out.keys()).items()
        }
        pipeline = getattr(diffusers, kind).from_pretrained(folder, dtype=dtypes, **options, **left_out, **in_variants)
    except ImportError as error:
        raise TrainingError(f"This needs diffusers and its company ({error}): {INSTALL}.") from error
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(
            f"The model in '{folder}' cannot be opened ({error}). Its weights must be .safetensors files: download or "
            "save it again."
        ) from error
    _check_parts(pipeline, family)
    return pipeline, family


def _check_parts(pipeline, family: PipelineFamily) -> None:
    for part in ("vae", *family.text_encoders):
        if getattr(pipeline, part) is None:
            raise UnsupportedModelError(
                f"This {type(pipeline).__name__} has no {part} (SDXL's refiner, for example, has one text encoder, not "
                "two): give the folder of a whole base model."
            )
    if family.channels(denoiser(pipeline)) != pipeline.vae.config.latent_channels:
        raise UnsupportedModelError(
            "This model takes a picture beside the noise (as for inpainting), which training cannot give it: train the "
            "model it was made from."
        )
    family.check(pipeline)


def _check_resolution(resolution: int, patch: int, patches: int | None, buckets: bool) -> None:
    if resolution <= 0 or resolution % patch:
        raise TrainingError(f"The resolution must be a multiple of {patch}, not {resolution}.")
    if buckets:
        check_resolution(resolution)
    if patches and resolution > patches * patch:
        raise TrainingError(f"This model works with a resolution of at most {patches * patch}, not {resolution}.")
    if patches and buckets and max(map(max, bucket_sizes(resolution))) > patches * patch:
        raise TrainingError(
            f"This model works with sides of at most {patches * patch} pixels, and some buckets of a resolution of "
            f"{resolution} are longer: choose a lower one, or leave out --buckets."
        )


def diffusion_noising(scheduler: Any) -> DiffusionNoising:
    """The noise levels of a diffusion model, as its scheduler, one of diffusers', has them written down.

    Raises UnsupportedModelError for one of a model that predicts neither noise nor velocity.
    """
    import diffusers

    config = scheduler.config
    if "beta_schedule" not in config or config.get("prediction_type", "epsilon") not in _PREDICTIONS:
        raise UnsupportedModelError(
            f"The scheduler of this model ({type(scheduler).__name__}) is for one that predicts neither noise "
            "nor velocity: train it in ComfyUI with SaRA Train."
        )
    schedule = diffusers.DDPMScheduler.from_config(config)
    return DiffusionNoising(schedule.alphas_cumprod, "v" if config.get("prediction_type") == "v_prediction" else "eps")


def _flow(pipeline, patches: int) -> FlowNoising:
    """The noise levels of a flow model, with its shift: a fixed one, or by the number of patches in a picture."""
    import diffusers

    if not isinstance(pipeline.scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        raise UnsupportedModelError(
            f"This model was saved with a {type(pipeline.scheduler).__name__}, which does not tell its noise levels: "
            "save it with the scheduler it was published with, a FlowMatchEulerDiscreteScheduler."
        )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    sigmas, config = scheduler.sigmas, scheduler.config
    if config.use_dynamic_shifting:
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        shift = config.base_shift + slope * (patches - config.base_image_seq_len)
        sigmas = scheduler.time_shift(shift, 1.0, sigmas)
    return FlowNoising(sigmas.flip(0))


class _Encoded(NamedTuple):
    """Width and height of an image, and of the part of it that is trained, in pixels; its latent"""

    size: tuple[int, int]
    taken: tuple[int, int]
    latent: torch.Tensor


def _encoded_images(
    pipeline, images: Iterable[CaptionedImage], resolution: int, buckets: bool, device: torch.device
) -> dict[tuple[Path, bool], _Encoded]:
    """By path, and whether it is mirrored."""
    pipeline.vae.to(device)
    different = dict.fromkeys((image.path, image.is_mirrored) for image in images)
    encoded = {one: _encoded(pipeline, *one, resolution, buckets, device) for one in different}
    pipeline.vae.to("cpu")
    return encoded


def _encoded(
    pipeline, path: Path, is_mirrored: bool, resolution: int, buckets: bool, device: torch.device
) -> _Encoded:
    image = read_picture(path).image
    width, height = cut(image.size, resolution, buckets).size if buckets else (resolution, resolution)
    pixels = pipeline.image_processor.preprocess(_middle(image), height, width, resize_mode="crop")
    config = pipeline.vae.config
    latent = pipeline.vae.encode((pixels.flip(-1) if is_mirrored else pixels).to(device)).latent_dist.mode()[0]
    scaled = ((latent - (config.shift_factor or 0.0)) * config.scaling_factor).cpu()
    return _Encoded(image.size, (width, height), scaled)


def _middle(image):
    """A strip, of which only the middle is used, cut so far that scaling it up takes no memory to speak of."""
    width, height = image.size
    wide, high = min(width, LONGEST_STRIP * height), min(height, LONGEST_STRIP * width)
    if (wide, high) == (width, height):
        return image
    left, top = (width - wide) // 2, (height - high) // 2
    return image.crop((left, top, left + wide, top + high))


def _encoded_texts(
    pipeline, family: PipelineFamily, captions: set[str], device: torch.device
) -> dict[str, Conditions]:
    """By caption. Computed on the CPU if the device is too small for the text encoders: SD3's and Flux's T5 alone has
    4.7 billion parameters."""
    try:
        return _texts_on(device, pipeline, family, captions)
    except RuntimeError as error:
        if device.type == "cpu" or not is_out_of_memory(error):
            raise
    return _texts_on(torch.device("cpu"), pipeline, family, captions)


def _texts_on(
    device: torch.device, pipeline, family: PipelineFamily, captions: set[str]
) -> dict[str, Conditions]:
    for part in (*family.text_encoders, "text_encoder_3"):
        if (encoder := getattr(pipeline, part, None)) is not None:
            encoder.to(device)
    return {
        caption: {name: tensor.float().cpu() for name, tensor in family.text(pipeline, caption, device).items()}
        for caption in captions
    }
