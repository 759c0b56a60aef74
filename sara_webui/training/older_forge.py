"""reForge and Forge classic as hosts that train, and the model that they have loaded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from ldm_patched.ldm.modules import attention
from ldm_patched.modules import model_sampling
from modules import prompt_parser, sd_models

from .forge_kin import ForgeKinModel, ForgeKinTraining
from .own_weights import own_weights

# Both are looked up by name in each forward.
_ATTENTION = ("optimized_attention", "optimized_attention_masked")
_PREDICTIONS = {model_sampling.EPS: "eps", model_sampling.V_PREDICTION: "v"}


class OlderForgeTraining(ForgeKinTraining):
    """See training/host.py."""

    def refusal(self) -> str | None:
        if reason := super().refusal():
            return reason
        kmodel = self.host.model().forge_objects_original.unet.model
        if hasattr(kmodel.diffusion_model, "_orig_mod"):
            return "A compiled model cannot be trained: start the WebUI without --torch-compile."
        if _prediction(kmodel) is None:
            return (
                "This model is trained with noise levels of another kind than SD1.5's and SDXL's: train it elsewhere."
            )
        return None

    def _load_what_is_chosen(self) -> None:
        sd_models.reload_model_weights()

    def _precisions(self, kmodel: torch.nn.Module) -> tuple[torch.dtype, torch.dtype]:
        return kmodel.get_dtype(), kmodel.manual_cast_dtype or kmodel.get_dtype()

    @contextmanager
    def _trainable(self, unet: torch.nn.Module, device: torch.device) -> Iterator[torch.nn.Module]:
        hosts = {name: getattr(attention, name) for name in _ATTENTION}
        for name in hosts:
            setattr(attention, name, attention.attention_pytorch)  # some others have no gradient
        try:
            with own_weights(unet, device, "ldm_patched.modules.ops") as trained:
                yield trained
        finally:
            for name, function in hosts.items():
                setattr(attention, name, function)

    def _model(self, model: Any, unet: torch.nn.Module) -> "OlderForgeModel":
        return OlderForgeModel(model, unet)


class OlderForgeModel(ForgeKinModel):
    """See ForgeKinModel."""

    def __init__(self, model: Any, unet: torch.nn.Module):
        kmodel = model.forge_objects_original.unet.model
        dtype = kmodel.manual_cast_dtype or kmodel.get_dtype()
        super().__init__(model, unet, dtype, kmodel.model_sampling.sigmas, _prediction(kmodel))

    @torch.inference_mode()
    def _told(self, given: prompt_parser.SdConditioning) -> torch.Tensor | Mapping[str, torch.Tensor]:
        # As a picture does it: the text encoders are moved for it, and can have inference tensors.
        return self.model.get_learned_conditioning(given)


def _prediction(kmodel: torch.nn.Module) -> str | None:
    """What the UNet predicts. The host mixes a class of what it knows of noise levels and what it knows of that, and
    for a model with its own word for it does so anew, without saying so elsewhere."""
    kinds = type(kmodel.model_sampling).__bases__
    if model_sampling.ModelSamplingDiscrete not in kinds:
        return None
    return next((_PREDICTIONS[kind] for kind in kinds if kind in _PREDICTIONS), None)
