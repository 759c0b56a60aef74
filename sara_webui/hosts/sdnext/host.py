"""SD.Next as the face knows it.

It adds LoRAs to the weights and subtracts them again, which does not give back every bit: deltas are off the weights
while it does, and lie on what it has left.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from modules import extra_networks, logger, modeldata, paths, processing, prompt_parser_diffusers, sd_models, shared

from sara_core.errors import SaRAError

from ...console import log
from ...fitting import Model
from ...in_place import InPlace
from ...prompted import Outcome
from ...tags import Tag, read
from ..replacing import Replaced
from ..tagged import OURS, TaggedHost
from .weights import model_of

_LORA = "lora"


class SDNext(TaggedHost):
    """See hosts/host.py."""

    name = "SD.Next"

    def __init__(self):
        self._weights = InPlace(log.warning)
        self._deltas: list[Tag] = []  # of the last prompt, in <lora:…>
        self._loras: list = []
        super().__init__(self._weights)

    def install_networks(self) -> None:
        log.setLevel(logger.log.level)  # of what its console shows the root logger's says nothing
        super().install_networks()

    def model(self) -> Any:
        model = modeldata.model_data.sd_model
        return getattr(model, "pipe", model)

    def folders(self) -> list[Path]:
        return [Path(paths.models_path, "sara"), Path(shared.opts.lora_dir)]

    def take_off_everything(self) -> None:
        p = processing.StableDiffusionProcessingTxt2Img()
        # It takes LoRAs off only if what they were left off of when they came is left out again.
        for p.lora_apply_te in (True, False):
            extra_networks.activate_filtered(p, {})
        self._prompted.take_off()

    def _further_replaced(self) -> list[Replaced]:
        return [
            Replaced(extra_networks, "deactivate", self._deactivate),
            Replaced(processing, "get_processed", _with_our_lines),
            Replaced(sd_models, "unload_model_weights", self._before_weights_go),
        ]

    def _found_lora(self) -> None:
        """What its prompts say of LoRAs is looked at before it is."""

    def _described(self) -> Model:
        return model_of(self.model(), shared.opts.sd_model_checkpoint)

    def _tags(self) -> list[Tag]:
        return [*self._network.tags, *self._deltas]

    def _activate(self, original, p, extra_network_data: Mapping | None = None, *args, **kwargs) -> None:
        if p.disable_extra_networks:
            return
        data = extra_network_data or p.network_data
        loras = data.get(_LORA, ())
        deltas = [params for params in loras if self._is_delta(params)]
        theirs = {**data, _LORA: [params for params in loras if params not in deltas]} if loras else data

        def activate(p, given):
            before, self._loras = self._loras, list(given.get(_LORA, ()))
            with self._lifted() if before or self._loras else ExitStack():
                original(p, given, *args, **kwargs)
            self._deltas = list(self._read(deltas))

        super()._activate(activate, p, theirs)
        p.network_data = data  # by which it tells what its text encoders have made already

    def _deactivate(self, original, *args, **kwargs) -> None:
        with self._lifted() if self._loras else ExitStack():
            original(*args, **kwargs)

    def _settle(self, problem: str) -> Outcome:
        try:
            return super()._settle(problem)
        except SaRAError as error:
            self._prompted.take_off()
            return Outcome([str(error)], text_changed=True)

    def _is_delta(self, params: extra_networks.ExtraNetworkParams) -> bool:
        path = self.shelf.find(params.positional[0]) if params.positional else None
        return path is not None and self.shelf.is_delta(path)

    def _read(self, deltas: list[extra_networks.ExtraNetworkParams]) -> Iterator[Tag]:
        for params in deltas:
            try:
                yield read(params.positional, params.named)
            except SaRAError as error:
                self._network.lines.append(str(error))

    @contextmanager
    def _lifted(self):
        """While the host writes weights: every delta is off, and lies on what it has left afterwards."""
        with ExitStack() as lowered:
            for layer in self._weights.layers():
                lowered.enter_context(self._weights.lifted(layer))
            yield

    def _forget_texts(self, p) -> None:
        prompt_parser_diffusers.cache.clear()

    def _before_weights_go(self, original, *args, **kwargs):
        self._prompted.take_off()
        return original(*args, **kwargs)


def _with_our_lines(original, p, *args, comments: str = "", **kwargs):
    """The host shows no comments of a picture but its own."""
    lines = [line for line in p.comments if line.startswith(OURS)]
    return original(p, *args, comments="\n".join([*filter(None, [comments]), *lines]), **kwargs)
