"""AUTOMATIC1111's WebUI as the face knows it."""

from typing import Any

from modules import extra_networks, processing, sd_models

from ...console import log
from ...fitting import Model
from ...in_place import InPlace
from ..replacing import Replaced
from ..tagged import TaggedHost
from . import lora_extension
from .weights import model_of


class A1111(TaggedHost):
    """See hosts/host.py."""

    name = "AUTOMATIC1111"

    def __init__(self):
        self._weights = InPlace(log.warning)
        super().__init__(self._weights)

    def model(self) -> Any:
        return sd_models.model_data.sd_model

    def take_off_everything(self) -> None:
        extra_networks.activate(processing.StableDiffusionProcessingTxt2Img(), {})
        self._prompted.take_off()
        if self._lora is not None and self.model() is not None:
            self._lora.restore(self.model())

    def _further_replaced(self) -> list[Replaced]:
        return [
            Replaced(sd_models, "load_model_weights", self._before_weights_go),
            Replaced(sd_models, "send_model_to_trash", self._before_weights_go),
        ]

    def _found_lora(self) -> lora_extension.LoraExtension | None:
        networks = lora_extension.found()
        if networks is None or self._lora is not None:
            return self._lora
        return lora_extension.LoraExtension(networks, self._weights, self.shelf, lambda: self.folders()[0])

    def _described(self) -> Model:
        return model_of(self.model())

    def _before_weights_go(self, original, model, *args, **kwargs):
        """Another checkpoint is read into the model, or its weights are let go."""
        self._prompted.take_off()
        return original(model, *args, **kwargs)
