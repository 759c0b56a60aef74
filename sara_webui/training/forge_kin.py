"""What Forge and its kin have in common as hosts that train: a model in patchers, of whose weights a copy is trained.

The host's own are out of the graphics card's memory meanwhile, and are what comes back.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from modules import prompt_parser, sd_samplers_common, shared

from sara_core.errors import UnsupportedModelError

from .kin import LATENT_CHANNELS, KinTraining, as_written
from .own_weights import own

_WHOLE_VAE = 0
_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


class ForgeKinTraining(KinTraining):
    """See training/host.py."""

    def refusal(self) -> str | None:
        model = self.host.model()
        if not (model.is_sd1 or model.is_sdxl):
            return (
                "In this WebUI SD1.5 and SDXL can be trained, and models that were made of them: train this one in "
                "ComfyUI, or with diffusers."
            )
        stored, computed = self._precisions(model.forge_objects_original.unet.model)
        if stored not in _PRECISIONS or stored != computed:
            return (
                f"The model is stored as {_called(stored)} and computes in {_called(computed)}: to train it, choose a "
                "precision for it that it computes in, too."
            )
        return None

    def loaded_unet(self) -> torch.nn.Module | None:
        model = self.host.model()
        return None if model is None else model.forge_objects_original.unet.model.diffusion_model

    @contextmanager
    def _prepared(self) -> Iterator["ForgeKinModel"]:
        model = self.host.model()
        unet = model.forge_objects_original.unet
        with self._trainable(unet.model.diffusion_model, unet.load_device) as trained:
            yield self._model(model, trained)

    @abstractmethod
    def _precisions(self, kmodel: torch.nn.Module) -> tuple[torch.dtype | str, torch.dtype]:
        """In which the weights are stored, and in which they compute."""

    @abstractmethod
    def _trainable(self, unet: torch.nn.Module, device: torch.device) -> AbstractContextManager[torch.nn.Module]:
        """The UNet with weights of our own, and with an attention that has a gradient."""

    @abstractmethod
    def _model(self, model: Any, unet: torch.nn.Module) -> "ForgeKinModel":
        """The host's model, whose UNet has weights of our own."""


class ForgeKinModel(ABC):
    """See training/host.py. model: the host's, whose UNet is `unet` with weights of our own; dtype: it computes in

    sigmas: noise over signal at each level, rising, fp32 [levels]; prediction: "eps" or "v"

    Raises UnsupportedModelError for a model that is told more of a picture than its caption, as for inpainting.
    """

    patch, has_diffusers_names = 8, False

    def __init__(self, model: Any, unet: torch.nn.Module, dtype: torch.dtype, sigmas: torch.Tensor, prediction: str):
        self.model, self.unet, self.name = model, unet, Path(model.sd_checkpoint_info.filename).name
        self.device, self.dtype = model.forge_objects_original.unet.load_device, dtype
        self.is_half = self.dtype == torch.float16
        self.signal = own(1 / (1 + sigmas.square()))
        self.prediction = prediction
        self.clip_skip = int(shared.opts.CLIP_stop_at_last_layers)
        first = next(weight for weight in unet.parameters() if weight.dim() == 4)
        if first.shape[1] != LATENT_CHANNELS:
            raise UnsupportedModelError(
                "This model takes something beside the noise and the caption (a picture, as for inpainting), which "
                "training cannot give it: train the model that it was made from."
            )

    @abstractmethod
    def _told(self, given: prompt_parser.SdConditioning) -> torch.Tensor | Mapping[str, torch.Tensor]:
        """What the host's text encoders make of a caption."""

    def latent(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(seed)  # the VAE draws from what it has found, and a resumed run is to find the same
            latent = sd_samplers_common.images_tensor_to_samples(pixels.permute(2, 0, 1)[None], _WHOLE_VAE, self.model)
        return own(latent[0])

    def conditions(self, caption: str, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        told = self._told(prompt_parser.SdConditioning([as_written(caption)], width=size[0], height=size[1]))
        told = told if isinstance(told, Mapping) else {"crossattn": told}
        return {name: own(tensor[0]) for name, tensor in told.items()}

    def predict(
        self, unet: torch.nn.Module, noisy: torch.Tensor, timesteps: torch.Tensor,
        conditions: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:  # fmt: skip
        told = {name: tensor.to(self.dtype) for name, tensor in conditions.items()}
        vector = {"y": told["vector"]} if "vector" in told else {}
        context = told["crossattn"]
        predicted = unet(noisy.to(self.dtype), timesteps.float(), context=context, transformer_options={}, **vector)
        return predicted.float()

    def picture(self, latent: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            decoded = sd_samplers_common.samples_to_images_tensor(latent[None], _WHOLE_VAE, self.model)
        return (own(decoded[0]).permute(1, 2, 0) / 2 + 0.5).clamp(0, 1)


def _called(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")
