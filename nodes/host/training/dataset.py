"""Images and captions → samples: what the model is given, prepared once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import comfy.sampler_helpers
import comfy.samplers
import torch

from ....sara_core.data.denoising_loss import Sample
from ....sara_core.errors import TrainingError
from ....sara_core.wording import Sentence
from .masks import check_guides, check_mask, mask_is_picture, mask_of_latent
from .pairing import CLASS_IMAGE, Pairs
from .refusals import check_picture_given, incomplete_captions_explained

# The host's count of a latent's dimensions → their names.
_DIMENSIONS = {1: "[1, channels, length]", 2: "[1, channels, height, width]", 3: "[1, channels, frames, height, width]"}


@dataclass(frozen=True)
class HostSample(Sample):
    """latent: [1, channels, *size]; conditions: name → comfy.conds.COND… of batch 1, made of its caption; mask: of the
    latent's shape (masks.py), None where all of it is learned"""

    mask: torch.Tensor | None = None

    def can_join(self, other: "HostSample") -> bool:
        """Whether both fit into one batch."""
        return (
            self.latent.shape == other.latent.shape
            and (self.mask is None) == (other.mask is None)
            and self.conditions.keys() == other.conditions.keys()
            and all(cond.can_concat(other.conditions[name]) for name, cond in self.conditions.items())
        )

    def on(self, device) -> "HostSample":
        """The sample with its latent, conditions and mask on `device`, to be put into a batch."""
        mask = tensors_on(device, self.mask)
        return HostSample(self.latent.to(device), _moved(self.conditions, device), mask=mask)


@torch.no_grad()  # some models pass the text through layers of theirs that are being trained: once, not per step
def prepare_samples(patcher, pairs: Pairs, seed: int, unconditional: list | None = None) -> list[HostSample]:
    """Scale the latents and let the model turn each caption's conditioning into its inputs, as sampling does.

    unconditional: CONDITIONING entry of the empty caption, if captions are dropped

    The samples stay on the patcher's offload device, where there is room for many. Every image is prepared by itself,
    even under a shared caption: inputs depend on its size and, in inpainting models, on the image. The tensors of a
    shared caption are not copied. To be called outside inference mode. TrainingError if an image does not fit.
    """
    samples = []
    for (latent, mask), caption in zip(scaled_images(patcher, pairs), pairs.captions):
        conditions = conditions_of(patcher, latent, caption, seed, mask, patcher.offload_device)
        empty = None
        if unconditional is not None:
            # What belongs to the image (its size, a reference picture, guidance) stays when the text goes.
            text, options = unconditional
            without = [text, {**caption[1], **options}]
            empty = conditions_of(patcher, latent, without, seed, mask, patcher.offload_device)
        latent, mask = tensors_on(patcher.offload_device, (latent, mask))
        samples.append(HostSample(latent, conditions, empty, mask))
    return samples


def scaled_images(patcher, pairs: Pairs) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Each image as the model sees it and the mask of it, as in a HostSample, on the load device."""
    masks = pairs.masks or [None] * len(pairs)
    for number, (image, mask) in enumerate(zip(pairs.images, masks), start=1):
        latent = _as_the_model_sees_it(patcher, image, _numbered(number, pairs.kind))
        yield latent, None if mask is None else mask_of_latent(patcher, mask, latent)


def _numbered(number: int, kind: str) -> Sentence:
    return Sentence("class image {number}" if kind == CLASS_IMAGE else "image {number}", number=number)


def _as_the_model_sees_it(patcher, image: torch.Tensor, name: Sentence) -> torch.Tensor:
    """fp32 on the load device, scaled, with the dimensions that the host gives latents before it samples."""
    model, layout = patcher.model, patcher.model.latent_format
    latent = image.clone().to(device=patcher.load_device, dtype=torch.float32)
    if layout.latent_dimensions == 3 and latent.ndim == 4:
        latent = latent.unsqueeze(2)
    if latent.ndim != layout.latent_dimensions + 2:
        raise TrainingError(Sentence(
            "The latents of {image} have the shape {shape}, this MODEL works with {other}: encode with the VAE "
            "that belongs to the MODEL.", image=name, shape=str(list(latent.shape)),
            other=_DIMENSIONS[layout.latent_dimensions],
        ))  # fmt: skip
    channels = vae_channels(layout)
    if latent.shape[1] != channels:
        raise TrainingError(Sentence(
            "The latents of {image} have {count} channels, this MODEL works with {other}: encode the images with "
            "the VAE that belongs to the MODEL.", image=name, count=latent.shape[1], other=channels,
        ))  # fmt: skip
    latent = model.process_latent_in(latent)
    if not torch.isfinite(latent).all():
        raise TrainingError(Sentence(
            "The latents of {image} hold values that are not numbers, as some VAEs make in fp16: start ComfyUI "
            "with --fp32-vae, take another VAE, or leave that image out.", image=name,
        ))  # fmt: skip
    return latent


def vae_channels(latent_format) -> int:
    """Channels of latents as the VAE makes them; formats that fold frames into channels give the model more."""
    latent = torch.zeros(1, latent_format.latent_channels, *[2] * latent_format.latent_dimensions)
    return latent_format.process_out(latent).shape[1]


def conditions_of(
    patcher, latent: torch.Tensor, caption: list, seed: int, mask: torch.Tensor | None, kept_on: torch.device
) -> dict:
    """What the model makes of a caption, as a HostSample has it. TrainingError if the caption lacks something.

    latent, mask: as `scaled_images` gives them, on the load device; caption: CONDITIONING entry [tensor, options]
    kept_on: where the tensors of the conditions are to be
    """
    model, device = patcher.model, patcher.load_device
    conditioning = {"positive": comfy.sampler_helpers.convert_cond([caption])}
    noise = torch.zeros_like(latent)
    check_guides(mask, latent, caption[1])
    with incomplete_captions_explained(patcher, (ValueError, TypeError, KeyError, AttributeError)):
        processed = comfy.samplers.process_conds(
            model, noise, conditioning, device, latent_image=latent, denoise_mask=mask, seed=seed
        )
        made = processed["positive"][0]["model_conds"]
        conditions = {name: cond.process_cond(batch_size=1, area=None, device=device) for name, cond in made.items()}
    check_mask(patcher, mask is not None, caption[1])
    if not mask_is_picture(patcher):
        check_picture_given(patcher, conditions, caption[1])
    return _moved(conditions, kept_on)


def _moved(conditions: dict, device) -> dict:
    return {name: cond._copy_with(tensors_on(device, cond.cond)) for name, cond in conditions.items()}


def tensors_on(device, value):
    """`value` with every tensor in its lists and dictionaries on `device`."""
    return _with_tensors(lambda tensor: tensor.to(device), value)


def without_inference_tensors(value):
    """`value`, with tensors made in inference mode (which autograd cannot save) replaced by copies."""
    return _with_tensors(lambda tensor: tensor.clone() if tensor.is_inference() else tensor, value)


def _with_tensors(change: Callable[[torch.Tensor], torch.Tensor], value):
    """`value` with every tensor in its lists and dictionaries changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_with_tensors(change, item) for item in value)
    if isinstance(value, dict):
        return {key: _with_tensors(change, item) for key, item in value.items()}
    return value
