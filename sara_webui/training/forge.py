"""Forge and Forge Neo as hosts that train, and the model that they have loaded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from backend import attention
from backend.nn import unet as unet_module
from modules import prompt_parser, sd_models

from .forge_kin import ForgeKinModel, ForgeKinTraining
from .own_weights import own_weights


class ForgeTraining(ForgeKinTraining):
    """See training/host.py."""

    def _load_what_is_chosen(self) -> None:
        with torch.inference_mode():
            sd_models.forge_model_reload()

    def _precisions(self, kmodel: torch.nn.Module) -> tuple[torch.dtype | str, torch.dtype]:
        return kmodel.storage_dtype, kmodel.computation_dtype

    @contextmanager
    def _trainable(self, unet: torch.nn.Module, device: torch.device) -> Iterator[torch.nn.Module]:
        hosts = unet_module.attention_function
        unet_module.attention_function = attention.attention_pytorch  # some others have no gradient
        try:
            with own_weights(unet, device, "backend.operations") as trained:
                yield trained
        finally:
            unet_module.attention_function = hosts

    def _model(self, model: Any, unet: torch.nn.Module) -> "ForgeModel":
        return ForgeModel(model, unet)


class ForgeModel(ForgeKinModel):
    """See ForgeKinModel."""

    def __init__(self, model: Any, unet: torch.nn.Module):
        kmodel = model.forge_objects_original.unet.model
        prediction = "v" if kmodel.predictor.prediction_type == "v_prediction" else "eps"
        super().__init__(model, unet, kmodel.computation_dtype, kmodel.predictor.sigmas, prediction)

    def _told(self, given: prompt_parser.SdConditioning) -> torch.Tensor | Mapping[str, torch.Tensor]:
        self.model.set_clip_skip(self.clip_skip)
        return self.model.get_learned_conditioning(given)
