"""AUTOMATIC1111's WebUI as the face knows it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modules import extra_networks, paths, processing, sd_models, shared

from sara_core.errors import SaRAError

from ...fitting import Model
from ...infotext import HASHES, hashes_line, restored
from ...prompted import Outcome, Prompted
from ...shelf import Shelf
from ...tags import Tag, read
from ..replacing import Replaced
from . import lora_extension
from .weights import model_of

_log = logging.getLogger("sara")


class SaRANetwork(extra_networks.ExtraNetwork):
    """`<sara:…>` in a prompt: what it says is noted here, and done when all networks have been activated."""

    def __init__(self):
        super().__init__("sara")
        self.tags: list[Tag] = []
        self.lines: list[str] = []

    def activate(self, p, params_list: Sequence[extra_networks.ExtraNetworkParams]) -> None:
        """params_list: of each tag what stands between its colons"""
        self.tags, self.lines = [], []
        for params in params_list:
            try:
                self.tags.append(read(params.positional, params.named))
            except SaRAError as error:
                self.lines.append(str(error))

    def deactivate(self, p) -> None:
        """Nothing: the next prompt says what is to go."""


class A1111:
    """See hosts/host.py."""

    name = "AUTOMATIC1111"

    def __init__(self):
        self.shelf = Shelf(self.folders)
        self._prompted = Prompted(self.shelf, _log.warning)
        self._network = SaRANetwork()
        self._lora: lora_extension.LoraExtension | None = None
        self._replaced: list[Replaced] = []
        self._said: list[str] = []  # of the last picture, so that the console has it once

    def install_networks(self) -> None:
        extra_networks.register_extra_network(self._network)
        if not self._replaced:
            self._replaced = [
                Replaced(extra_networks, "activate", self._activate),
                Replaced(sd_models, "load_model_weights", self._before_weights_go),
                Replaced(sd_models, "send_model_to_trash", self._before_weights_go),
            ]
        if problem := self._wrap_lora():
            _log.warning("SaRA: %s", problem)
        self.refresh()

    def uninstall(self) -> None:
        self._prompted.take_off()
        if self._lora is not None:
            self._lora.unwrap()
        for replaced in reversed(self._replaced):
            replaced.undo()
        self._lora, self._replaced = None, []
        extra_networks.extra_network_registry.pop(self._network.name, None)

    def folders(self) -> list[Path]:
        loras = (getattr(shared.cmd_opts, name, None) for name in ("lora_dir", "lyco_dir_backcompat"))
        return [Path(paths.models_path, "sara"), *(Path(folder) for folder in loras if folder)]

    def model(self) -> Any:
        return sd_models.model_data.sd_model

    def take_off_everything(self) -> None:
        extra_networks.activate(processing.StableDiffusionProcessingTxt2Img(), {})
        self._prompted.take_off()
        if self._lora is not None and self.model() is not None:
            self._lora.restore(self.model())

    def refresh(self) -> None:
        if self._lora is not None:
            self._lora.list_anew()

    def paste(self, infotext: str, parameters: dict) -> None:
        """A picture's parameters come back into the page: its deltas have the names that their files have now."""
        for prompt in ("Prompt", "Hires prompt"):
            if prompt in parameters:
                parameters[prompt] = restored(parameters[prompt], parameters.get(HASHES, ""), self.shelf)

    def _wrap_lora(self) -> str:
        """Put ours around the extension for LoRAs, if it is not there; why that cannot be done, for people."""
        try:
            networks = lora_extension.found()
        except SaRAError as error:
            return str(error)
        if self._lora is None and networks is not None:
            self._lora = lora_extension.LoraExtension(
                networks, self._prompted.weights, self.shelf, lambda: self.folders()[0]
            )
        if self._lora is not None:
            self._lora.wrap()
        return ""

    def _activate(self, original, p, extra_network_data: Mapping) -> None:
        problem = self._wrap_lora()
        original(p, extra_network_data)
        lines = list(self._network.lines)
        try:
            outcome = self._settle(problem)
        except Exception as error:
            self._prompted.take_off()
            _log.exception("SaRA: deltas could not be put on the model")
            said = f"Deltas could not be put on the model ({type(error).__name__}), see the console."
            outcome = Outcome([said], text_changed=True)
        for line in lines + outcome.lines:
            if line not in self._said:
                _log.warning("SaRA: %s", line)
            p.comment(f"SaRA: {line}")
        self._said = lines + outcome.lines
        _note_hashes(p, outcome.hashes)
        if outcome.text_changed:
            _forget_texts(p)

    def _settle(self, problem: str) -> Outcome:
        if problem:
            self._prompted.take_off()
            return Outcome([problem] if self._network.tags else [], text_changed=True)
        tags = self._network.tags + (self._lora.tags if self._lora is not None else [])
        return self._prompted.settle(self._described, self.model(), tags)

    def _described(self) -> Model:
        return model_of(self.model())

    def _before_weights_go(self, original, model, *args, **kwargs):
        """Another checkpoint is read into the model, or its weights are let go."""
        self._prompted.take_off()
        return original(model, *args, **kwargs)


def _note_hashes(p, hashes: Mapping[str, str]) -> None:
    """Both passes of a picture have their deltas in its parameters."""
    if not getattr(p, "is_hr_pass", False) or not hasattr(p, "sara_hashes"):
        p.sara_hashes = {}
    p.sara_hashes.update(hashes)
    if p.sara_hashes:
        p.extra_generation_params[HASHES] = hashes_line(p.sara_hashes)


def _forget_texts(p) -> None:
    """The host keeps what the text encoders made of a prompt by its tags, behind which are other files now."""
    for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
        if (kept := getattr(p, name, None)) is not None:
            kept[:] = [None, None]
