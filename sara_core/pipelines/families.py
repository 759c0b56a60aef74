"""The kinds of diffusers pipelines that can be trained: what their network is told of a picture, and how it is called.

Conditions are a sample's tensors without the batch dimension; a network gets them stacked, floating ones in its dtype.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ..data.noising import FlowNoising
from ..errors import UnsupportedModelError

Conditions = Mapping[str, torch.Tensor]
# What FLUX.1-dev is told of guidance unless told otherwise, in diffusers and in ComfyUI.
_FLUX_GUIDANCE = 3.5
_FLUX_TOKENS, _FLUX_SCHNELL_TOKENS = 512, 256
_SDXL_SIZES = 6


class PipelineFamily:
    """What the kinds have in common. `pipeline` is one of diffusers, `model` its UNet or transformer.

    is_flow: whether the network is a flow model (data.noising.FlowNoising); text_encoders: attributes of the pipeline
    left_out: arguments of from_pretrained that keep diffusers from loading what training does not need
    """

    is_flow = False
    text_encoders = ("text_encoder", "text_encoder_2")
    # Loaded by diffusers unless they are replaced; they are for drawing pictures.
    left_out = {"feature_extractor": None, "image_encoder": None}

    def check(self, pipeline: Any) -> None:
        """Raise UnsupportedModelError for a pipeline of this kind that holds another kind of network."""

    def channels(self, model: torch.nn.Module) -> int:
        """Channels of the latents that the network takes."""
        return model.config.in_channels

    def patch(self, model: torch.nn.Module) -> int:
        """Side of the squares of a latent that the network sees as one."""
        return 1

    def text(self, pipeline: Any, caption: str, device: torch.device) -> Conditions:
        """What the network is told of a caption, computed on `device`: tensors [tokens, width] or [width]."""
        raise NotImplementedError

    def size(self, picture: tuple[int, int], taken: tuple[int, int]) -> Conditions:
        """What the network is told of a picture's width and height in pixels, of which the middle was scaled to those
        that were taken."""
        return {}

    def predict(
        self, model: torch.nn.Module, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        """The network's prediction, of the shape of `noisy`: [batch, channels, height, width].

        timesteps: [batch], as the family's noising gives them; conditions: of all samples, stacked
        """
        raise NotImplementedError


class StableDiffusion(PipelineFamily):
    """Stable Diffusion 1 and 2."""

    text_encoders = ("text_encoder",)
    left_out = {**PipelineFamily.left_out, "safety_checker": None, "requires_safety_checker": False}

    def text(self, pipeline: Any, caption: str, device: torch.device) -> Conditions:
        text, _ = pipeline.encode_prompt(caption, device, 1, do_classifier_free_guidance=False)
        return {"text": text[0]}

    def predict(
        self, model: torch.nn.Module, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        return model(noisy, timesteps, encoder_hidden_states=conditions["text"]).sample


class StableDiffusionXL(PipelineFamily):
    """SDXL, told of the pictures' sizes (Podell et al., "SDXL: Improving Latent Diffusion Models for High-Resolution
    Image Synthesis", 2023, section 2.2)."""

    def check(self, pipeline: Any) -> None:
        config, pooled = pipeline.unet.config, pipeline.text_encoder_2.config.projection_dim
        told = (config.addition_time_embed_dim or 0) * _SDXL_SIZES + pooled
        if config.addition_embed_type != "text_time" or pipeline.unet.add_embedding.linear_1.in_features != told:
            raise UnsupportedModelError(
                "The UNet of this model is told other things of a picture than SDXL's base model is (as the refiner "
                "is): train the base model."
            )

    def text(self, pipeline: Any, caption: str, device: torch.device) -> Conditions:
        text, _, pooled, _ = pipeline.encode_prompt(caption, device=device, do_classifier_free_guidance=False)
        return {"text": text[0], "pooled": pooled[0]}

    def size(self, picture: tuple[int, int], taken: tuple[int, int]) -> Conditions:
        """Its own size, where the cut-out's upper left corner lies after scaling, and the cut-out's size: int64 [6],
        each (vertical, horizontal). Integers keep their value in every dtype of the network."""
        (width, height), (wide, high) = picture, taken
        scaled_height, scaled_width = max(high, height * wide // width), max(wide, width * high // height)
        top, left = scaled_height // 2 - high // 2, scaled_width // 2 - wide // 2
        return {"sizes": torch.tensor([height, width, top, left, high, wide])}

    def predict(
        self, model: torch.nn.Module, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        added = {"text_embeds": conditions["pooled"], "time_ids": conditions["sizes"]}
        return model(
            noisy, timesteps, encoder_hidden_states=conditions["text"], added_cond_kwargs=added
        ).sample


class StableDiffusion3(PipelineFamily):
    """Stable Diffusion 3 and 3.5, with or without its T5."""

    is_flow = True

    def patch(self, model: torch.nn.Module) -> int:
        return model.config.patch_size

    def text(self, pipeline: Any, caption: str, device: torch.device) -> Conditions:
        text, _, pooled, _ = pipeline.encode_prompt(
            caption, None, None, device=device, do_classifier_free_guidance=False
        )
        return {"text": text[0], "pooled": pooled[0]}

    def predict(
        self, model: torch.nn.Module, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        text = {"encoder_hidden_states": conditions["text"], "pooled_projections": conditions["pooled"]}
        return model(noisy, timestep=timesteps, **text).sample


class Flux(PipelineFamily):
    """FLUX.1-dev, told the guidance that pictures are usually drawn with, and FLUX.1-schnell. The network takes a
    latent as a row of its 2 × 2 patches, with their places."""

    is_flow = True

    def channels(self, model: torch.nn.Module) -> int:
        return model.config.in_channels // self.patch(model) ** 2

    def patch(self, model: torch.nn.Module) -> int:
        return 2

    def text(self, pipeline: Any, caption: str, device: torch.device) -> Conditions:
        tokens = _FLUX_TOKENS if pipeline.transformer.config.guidance_embeds else _FLUX_SCHNELL_TOKENS
        text, pooled, _ = pipeline.encode_prompt(caption, device=device, max_sequence_length=tokens)
        return {"text": text[0], "pooled": pooled[0]}

    def predict(
        self, model: torch.nn.Module, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        device, text, patch = noisy.device, conditions["text"], self.patch(model)
        patches = torch.nn.functional.pixel_unshuffle(noisy, patch)
        rows, columns = patches.shape[2:]
        guidance = None
        if model.config.guidance_embeds:
            guidance = torch.full((len(noisy),), _FLUX_GUIDANCE, device=device)
        predicted = model(
            patches.flatten(2).transpose(1, 2),
            timestep=timesteps / FlowNoising.TIMESTEPS,
            guidance=guidance,
            encoder_hidden_states=text,
            pooled_projections=conditions["pooled"],
            txt_ids=torch.zeros(text.shape[1], 3, device=device),
            img_ids=_places(rows, columns).to(device),
        ).sample
        return torch.nn.functional.pixel_shuffle(predicted.transpose(1, 2).unflatten(2, (rows, columns)), patch)


def _places(rows: int, columns: int) -> torch.Tensor:
    """(0, row, column) of each patch, row after row: fp32 [rows · columns, 3]."""
    return torch.cartesian_prod(torch.zeros(1), torch.arange(float(rows)), torch.arange(float(columns)))


# By the class of the pipeline, which a diffusers folder names.
FAMILIES = {
    "StableDiffusionPipeline": StableDiffusion(),
    "StableDiffusionXLPipeline": StableDiffusionXL(),
    "StableDiffusion3Pipeline": StableDiffusion3(),
    "FluxPipeline": Flux(),
}
