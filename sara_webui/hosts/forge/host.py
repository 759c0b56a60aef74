"""Forge and its kin as the face knows them."""

import sys
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from modules import extra_networks, processing, sd_models

from sara_core.delta.entry import SparseEntry
from sara_core.errors import DeltaError, UnsupportedModelError
from sara_core.names.outline import outline_of
from sara_core.names.text_encoders import TEXT_PREFIX, encoder_of, titles_of
from sara_core.wording import listed

from ...fitting import Model, is_of_unet
from ...in_place import Place
from ...prompted import Outcome
from ..lora_files import LoraFiles
from ..replacing import Replaced
from ..tagged import TaggedHost
from .patched import KMODEL, Patched, Patching, parameters, patcher_of

_LORA = ("load_networks", "list_available_networks", "available_networks",
         "available_network_aliases", "forbidden_network_aliases")  # fmt: skip


class Forge(TaggedHost):
    """See hosts/host.py. patching: of the one that runs"""

    def __init__(self, patching: Patching):
        self.name, self._patching = patching.name, patching
        self._patched = Patched(patching, self.model)
        self._identities: WeakKeyDictionary[Any, object] = WeakKeyDictionary()
        super().__init__(self._patched)

    def model(self) -> Any:
        model = sd_models.model_data.sd_model
        return model if getattr(model, "forge_objects_after_applying_lora", None) is not None else None

    def take_off_everything(self) -> None:
        extra_networks.activate(processing.StableDiffusionProcessingTxt2Img(), {})
        self._prompted.take_off()
        self._patching.unload_all()
        self._patched.restore()

    def _further_replaced(self) -> list[Replaced]:
        return []

    def _identity(self) -> object:
        # Not the model: what is kept of the last prompt would keep it in memory beside the next one.
        model = self.model()
        return None if model is None else self._identities.setdefault(model, object())

    def _found_lora(self) -> LoraFiles | None:
        networks = sys.modules.get("networks")
        if networks is None or self._lora is not None:
            return self._lora
        if not all(hasattr(networks, name) for name in _LORA):
            raise UnsupportedModelError(
                "Another extension has taken the place of the built-in one for LoRAs: no delta was used. Switch that "
                "extension off, or draw without deltas."
            )
        return LoraFiles(networks, self.shelf, lambda: self.folders()[0])

    def _settle(self, problem: str) -> Outcome:
        outcome = super()._settle(self._patching.problem() or problem)
        self._patched.put()  # the extension for LoRAs puts its own models there, whenever its tags are others
        return outcome

    def _described(self) -> Model:
        model = self.model()
        if model.forge_objects_original.clip is not None:
            self._patching.prepare(model.forge_objects_original.clip.cond_stage_model)
        places = {}
        for prefix, part in ((KMODEL, model.forge_objects_original.unet), ("", model.forge_objects_original.clip)):
            if part is not None:
                places |= self._places(prefix, patcher_of(part))
        shapes = {name: tuple(place.weight.shape) for name, place in places.items() if is_of_unet(name)}
        known = outline_of({name.removeprefix(KMODEL): shape for name, shape in shapes.items()}).family
        family = known or ("SD1.5" if getattr(model, "is_sd1", False) else type(model).__name__)
        label = getattr(model.sd_checkpoint_info, "name_for_extra", "this checkpoint")
        return Model(self._identity(), label, family, places, _loaded_entries)

    def _places(self, prefix: str, patcher: Any) -> dict[str, Place]:
        before = self._patching.base(patcher)
        return {
            f"{prefix}{name}": Place(before.get(parameter.path, parameter.tensor), ())
            for name, parameter in parameters(patcher.model).items()
        }


def _loaded_entries(
    entries: Mapping[str, SparseEntry], shapes: Mapping[str, tuple[int, ...]], label: str
) -> tuple[dict[str, SparseEntry], list[str]]:
    """See Model.text_entries: the loaded encoders are called as in ComfyUI."""
    present = {name.partition(".")[0] for name in shapes}
    absent = [name for name in entries if encoder_of(name) not in present]
    found = {name.removeprefix(TEXT_PREFIX): entry for name, entry in entries.items() if name not in absent}
    if missing := found.keys() - shapes.keys():
        raise DeltaError(
            f"{len(missing)} of the delta's weights of text encoders do not exist in '{label}': {listed(missing)}. Use "
            "the checkpoint that the delta was made for."
        )
    return found, [f"Left out: the change of {titles_of(absent)}, which '{label}' does not have."] if absent else []
