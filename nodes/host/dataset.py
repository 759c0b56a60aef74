"""Latents and conditioning as they come off the wires → one sample per image, ready for the model."""

from dataclasses import dataclass

import comfy.sampler_helpers
import comfy.samplers
import torch

from ...sara_core.errors import TrainingError, UnsupportedModelError

# What a caption may carry that training does not follow: key in the conditioning → the user's word for it.
UNSUPPORTED_CONDITIONING = {
    "control": "ControlNet",
    "gligen": "GLIGEN",
    "hooks": "hooks (scheduled LoRAs)",
    "area": "an area",
    "mask": "a mask",
}


@dataclass
class Sample:
    """latent: [1, channels, *size], scaled as the model sees it; conditions: name → comfy.conds.COND… of batch 1"""

    latent: torch.Tensor
    conditions: dict

    def can_join(self, other: "Sample") -> bool:
        """Whether both fit into one batch."""
        return (
            self.latent.shape == other.latent.shape
            and self.conditions.keys() == other.conditions.keys()
            and all(cond.can_concat(other.conditions[name]) for name, cond in self.conditions.items())
        )


def split_latents(latents: list[dict]) -> list[torch.Tensor]:
    """LATENT inputs, batched or listed, any mixture of sizes → one tensor [1, channels, *size] per image."""
    images = []
    for latent in latents:
        samples = latent["samples"]
        if not isinstance(samples, torch.Tensor) or getattr(samples, "is_nested", False):
            raise UnsupportedModelError("Latents of several kinds at once (video with sound) cannot be trained on yet.")
        images.extend(samples.detach().split(1))
    if not images:
        raise TrainingError("There is no image to train on: connect the latents of at least one image.")
    return images


def split_conditioning(positive: list, images: int) -> list[list]:
    """CONDITIONING inputs → one [tensor, options] entry per image.

    One caption serves all images; any other count than the images' raises TrainingError.
    """
    captions = [entry for conditioning in positive for entry in conditioning]
    for _, options in captions:
        for key, what in UNSUPPORTED_CONDITIONING.items():
            if options.get(key) is not None:
                raise UnsupportedModelError(
                    f"The conditioning carries {what}, which training cannot follow: connect the captions directly."
                )
    if len(captions) == 1:
        return captions * images
    if len(captions) != images:
        raise TrainingError(
            f"There are {images} images but {len(captions)} captions. Give every image its own caption "
            "(a .txt file of the same name), or one caption for all."
        )
    return captions


def prepare_samples(patcher, latents: list[torch.Tensor], captions: list, seed: int) -> list[Sample]:
    """Scale the latents and let the model turn each caption's conditioning into its inputs, as sampling does.

    To be called outside inference mode, with the model loaded.
    """
    model, device = patcher.model, patcher.load_device
    samples = []
    for latent, caption in zip(latents, captions):
        latent = model.process_latent_in(latent.clone().to(device=device, dtype=torch.float32))
        conditioning = {"positive": comfy.sampler_helpers.convert_cond([caption])}
        noise = torch.zeros_like(latent)
        processed = comfy.samplers.process_conds(model, noise, conditioning, device, latent_image=latent, seed=seed)
        model_conds = processed["positive"][0]["model_conds"]
        conditions = {
            name: cond.process_cond(batch_size=1, area=None, device=device) for name, cond in model_conds.items()
        }
        samples.append(Sample(latent, conditions))
    return samples


def without_inference_tensors(value):
    """`value`, with tensors made in inference mode (which autograd cannot save) replaced by copies."""
    if isinstance(value, torch.Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, (list, tuple)):
        return type(value)(without_inference_tensors(item) for item in value)
    if isinstance(value, dict):
        return {key: without_inference_tensors(item) for key, item in value.items()}
    return value
