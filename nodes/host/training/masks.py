"""Noise masks of latents (Set Latent Noise Mask, image-to-video nodes): which part of an image is learned, 1, and which
is given, 0.

What the host's sampler puts where the mask is 0 is the model's own affair (`scale_latent_inpaint`): the image with the
noise of the level, or the clean image, which image-to-video models start from. Some are told the mask besides, as an
input, and count each token's noise level by it. Training does as the sampler does.
"""

import comfy.sampler_helpers
import torch

from ....sara_core.errors import TrainingError, UnsupportedModelError
from ..family import model_family


def image_masks(latent: dict, kind: str = "image") -> list[torch.Tensor | None]:
    """The mask of each image of a LATENT, of the image's own shape as the sampler resizes it, fp32; None where it is 1
    everywhere, or there is none.

    Raises TrainingError for a mask that cannot be resized, that holds values that are not numbers, or that leaves
    nothing to learn.
    """
    samples, mask = latent["samples"], latent.get("noise_mask")
    if mask is None:
        return [None] * len(samples)
    try:
        masks = comfy.sampler_helpers.prepare_mask(mask.detach().float(), samples.shape, samples.device)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise TrainingError(
            f"The noise mask of a {kind}, {list(mask.shape)}, does not fit its latents, {list(samples.shape)}: make "
            "the mask for these latents, or leave it out."
        ) from error
    return [_checked(mask, kind) for mask in masks.split(1)]


def _checked(mask: torch.Tensor, kind: str) -> torch.Tensor | None:
    if not torch.isfinite(mask).all():
        raise TrainingError(f"The noise mask of a {kind} holds values that are not numbers: make it anew.")
    if not learned(mask).any():
        raise TrainingError(
            f"The noise mask of a {kind} is 0 everywhere, so that nothing of it would be learned: what is white in the "
            "mask is. Turn it round with Invert Mask; of a video, mask only the frames that are given."
        )
    return None if (mask == 1).all() else mask


def mask_of_latent(model, mask: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """The mask of an image in the shape, and where, the MODEL has its latent. UnsupportedModelError for a MODEL that
    folds frames into channels, which the sampler cannot mask either."""
    if mask.numel() != latent.numel():
        raise UnsupportedModelError(
            f"A {model_family(model)} MODEL cannot be given a noise mask: connect the latents without it."
        )
    return mask.to(latent).reshape(latent.shape)


def learned(mask: torch.Tensor) -> torch.Tensor:
    """How much each element counts in the loss, 0 … 1. (The host marks padding by values below 0.)"""
    return mask.clamp(0, 1)


def as_sampled(model, noisy: torch.Tensor, sigma, noise, clean, mask: torch.Tensor) -> torch.Tensor:
    """What the sampler gives the model in place of `noisy`, under a mask of the same shape [batch, …].

    model: the host's BaseModel; sigma: [batch]
    """
    given = model.scale_latent_inpaint(x=noisy, sigma=sigma, noise=noise, latent_image=clean)
    return noisy * mask + given * (1.0 - mask)


def mask_is_picture(model) -> bool:
    """Whether a MODEL finds its picture by the mask alone: in the latents, where that is 0 (Cosmos)."""
    return tuple(model.model.concat_keys) == ("mask_inverted",)


def check_mask(model, masked: bool, options: dict) -> None:
    """Raise UnsupportedModelError if a MODEL needs a mask and the image has none, or if the model would be shown what
    it is to learn.

    options: of the caption's CONDITIONING entry
    """
    if mask_is_picture(model) and not masked:
        raise UnsupportedModelError(
            f"This {model_family(model)} MODEL makes a video from its first picture, which it finds by the latents' "
            "noise mask, and these have none. Take the mask from the node you sample this model with "
            "(CosmosImageToVideoLatent …): Latent Blend with blend_factor 0, that node's latents as samples1, the "
            "whole video's from VAE Encode as samples2."
        )
    inpaints = "masked_image" in model.model.concat_keys or type(model.model.model_config).__name__ == "FluxInpaint"
    if masked and inpaints and options.get("concat_latent_image") is None:
        raise UnsupportedModelError(
            f"This {model_family(model)} MODEL fills in what is masked, and is shown the picture without it. Give "
            "every caption that picture with InpaintModelConditioning, whose latents have the mask, too."
        )


def check_guides(mask: torch.Tensor | None, latent: torch.Tensor, options: dict) -> None:
    """Raise TrainingError if a caption has guides, frames behind the video's that LTX looks at, and the latents have
    none: the model would take the end of the video for them.

    mask, latent: of the image, [1, channels, frames, height, width]; options: of the caption's CONDITIONING entry
    """
    places = options.get("keyframe_idxs")
    if places is None or not places.shape[2]:
        return
    frames = max(1, places.shape[2] // latent.shape[-2:].numel())
    if mask is None or frames >= latent.shape[2] or (mask[:, :, -frames:] == 1).all():
        raise TrainingError(
            "A caption carries guides (LTXVAddGuide), and its latents have none: connect 'latent' of the last "
            "LTXVAddGuide to 'latents', with all its frames and its noise mask."
        )
