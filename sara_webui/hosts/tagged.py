"""What the WebUIs that came of AUTOMATIC1111's have in common: tags of a prompt, activated for each picture, and the
extension for LoRAs, whose tags may name deltas."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modules import extra_networks, paths, shared

from sara_core.errors import SaRAError

from ..console import log
from ..fitting import Model
from ..infotext import HASHES, hashes_line, restored
from ..prompted import Outcome, Prompted, Weights
from ..shelf import Shelf
from ..tags import Tag, read
from .lora_files import LoraFiles
from .replacing import Replaced

OURS = "SaRA: "  # begins our lines below a picture


class SaRANetwork(extra_networks.ExtraNetwork):
    """`<sara:…>` in a prompt: what it says is noted here, and done when all networks have been activated."""

    def __init__(self):
        super().__init__("sara")
        self.tags: list[Tag] = []
        self.lines: list[str] = []

    def activate(self, p, params_list: Sequence[extra_networks.ExtraNetworkParams], **_) -> None:
        """params_list: of each tag what stands between its colons"""
        self.tags, self.lines = [], []
        for params in params_list:
            try:
                self.tags.append(read(params.positional, params.named))
            except SaRAError as error:
                self.lines.append(str(error))

    def deactivate(self, p, **_) -> None:
        """Nothing: the next prompt says what is to go."""


class TaggedHost(ABC):
    """See hosts/host.py. weights: what puts deltas on the host's model"""

    name: str

    def __init__(self, weights: Weights):
        self.shelf = Shelf(self.folders)
        self._prompted = Prompted(self.shelf, weights)
        self._network = SaRANetwork()
        self._lora: LoraFiles | None = None
        self._replaced: list[Replaced] = []
        self._said: list[str] = []  # of the last picture, so that the console has it once

    def install_networks(self) -> None:
        extra_networks.register_extra_network(self._network)
        if not self._replaced:
            self._replaced = [Replaced(extra_networks, "activate", self._activate), *self._further_replaced()]
        if problem := self._wrap_lora():
            log.warning("SaRA: %s", problem)
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
        further = getattr(shared.cmd_opts, "lora_dirs", None) or ()
        return [Path(paths.models_path, "sara"), *(Path(folder) for folder in (*loras, *further) if folder)]

    @abstractmethod
    def model(self) -> Any:
        """The loaded model, as the host has it; None while none is loaded."""

    @abstractmethod
    def take_off_everything(self) -> None:
        """Every weight as its checkpoint has it, bit for bit: deltas and the host's own networks are off."""

    @abstractmethod
    def _further_replaced(self) -> list[Replaced]:
        """What else of the host has to be replaced."""

    @abstractmethod
    def _found_lora(self) -> LoraFiles | None:
        """The extension for LoRAs; None where it is switched off. Raises UnsupportedModelError if it is another one."""

    @abstractmethod
    def _described(self) -> Model:
        """The loaded model as deltas see it."""

    def _identity(self) -> object:
        """Another object for another model; None while none is loaded."""
        return self.model()

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
            found = self._found_lora()
        except SaRAError as error:
            return str(error)
        self._lora = self._lora or found
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
            log.exception("SaRA: deltas could not be put on the model")
            said = f"Deltas could not be put on the model ({type(error).__name__}), see the console."
            outcome = Outcome([said], text_changed=True)
        for line in lines + outcome.lines:
            if line not in self._said:
                log.warning("SaRA: %s", line)
            p.comment(f"{OURS}{line}")
        self._said = lines + outcome.lines
        _note_hashes(p, outcome.hashes)
        if outcome.text_changed:
            self._forget_texts(p)

    def _settle(self, problem: str) -> Outcome:
        if problem:
            self._prompted.take_off()
            return Outcome([problem] if self._network.tags else [], text_changed=True)
        return self._prompted.settle(self._described, self._identity(), self._tags())

    def _tags(self) -> list[Tag]:
        """What the prompt says of deltas."""
        return self._network.tags + (self._lora.tags if self._lora is not None else [])

    def _forget_texts(self, p) -> None:
        """The host keeps what the text encoders made of a prompt by its tags, behind which are other files now."""
        for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
            if (kept := getattr(p, name, None)) is not None:
                kept[:] = [None, None]


def _note_hashes(p, hashes: Mapping[str, str]) -> None:
    """Both passes of a picture have their deltas in its parameters."""
    if not getattr(p, "is_hr_pass", False) or not hasattr(p, "sara_hashes"):
        p.sara_hashes = {}
    p.sara_hashes.update(hashes)
    if p.sara_hashes:
        p.extra_generation_params[HASHES] = hashes_line(p.sara_hashes)
