"""The host's built-in extension for LoRAs, which does not see deltas in the weights it copies.

It puts LoRAs into a layer's weights in the layer's next forward: it takes a copy of the weight first, if it has none,
brings the weight back to its copy, and adds LoRA after LoRA.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import torch

from sara_core.delta import metadata as keys
from sara_core.errors import UnsupportedModelError
from sara_core.names.family_names import current_name

from ...in_place import InPlace
from ...shelf import Shelf
from ..lora_files import LoraFiles

_NEEDED = (
    "load_networks", "network_apply_weights", "network_forward", "network_restore_weights_from_backup",
    "network_reset_cached_weight", "process_network_files", "loaded_networks", "available_networks",
    "available_network_aliases", "forbidden_network_aliases",
)  # fmt: skip
# What the extension calls a family of models, by whose name it hides cards for others.
_VERSIONS = {"SD1.5": "SD1", "SD2.1": "SD2", "SDXL": "SDXL", "SDXL Refiner": "SDXL", "SSD-1B": "SDXL"}


def found() -> ModuleType | None:
    """The extension's module; None where it is switched off. Raises UnsupportedModelError if it is another one."""
    networks = sys.modules.get("networks")
    if networks is not None and not all(hasattr(networks, name) for name in _NEEDED):
        raise UnsupportedModelError(
            "Another extension has taken the place of the built-in one for LoRAs, and deltas cannot tell when it "
            "writes weights: no delta was used. Switch that extension off, or draw without deltas."
        )
    return networks


class LoraExtension(LoraFiles):
    """networks: the extension's module; weights: what is on the model; shelf, own_folder: where deltas are"""

    def __init__(self, networks: ModuleType, weights: InPlace, shelf: Shelf, own_folder: Callable[[], Path]):
        super().__init__(networks, shelf, own_folder)
        self._weights = weights

    def restore(self, sd_model: torch.nn.Module) -> None:
        """Take the extension's own LoRAs off every layer now, which it does in a layer's next forward otherwise. None
        may be loaded."""
        layers = {id(layer): layer for layer in getattr(sd_model, "network_layer_mapping", {}).values()}
        with torch.no_grad():
            for layer in layers.values():
                if getattr(layer, "network_current_names", ()):
                    self._networks.network_apply_weights(layer)

    def _functions(self) -> Iterator[tuple[object, str, Callable]]:
        yield from super()._functions()
        yield self._networks, "network_apply_weights", self._apply_weights
        yield self._networks, "network_forward", self._forward
        yield getattr(sys.modules.get("network"), "NetworkOnDisk", None), "detect_version", self._detect_version

    def _apply_weights(self, original, layer):
        if not self._weights.is_on(layer) or not self._will_write(layer):
            return original(layer)
        with self._weights.lifted(layer):
            return original(layer)

    def _will_write(self, layer) -> bool:
        """Whether the extension is about to copy or write the weights of a layer."""
        current = getattr(layer, "network_current_names", ())
        if not (current or self._networks.loaded_networks):
            return False
        wanted = tuple(
            (net.name, net.te_multiplier, net.unet_multiplier, net.dyn_dim) for net in self._networks.loaded_networks
        )
        return current != wanted

    def _forward(self, original, layer, *args):
        """With the option to leave weights alone it restores a layer from its copies, of which there are some after the
        option has been changed; it throws these away then."""
        copies = (getattr(layer, f"network_{what}_backup", None) for what in ("weights", "bias"))
        if self._networks.loaded_networks and self._weights.is_on(layer) and any(copy is not None for copy in copies):
            with self._weights.lifted(layer):
                self._networks.network_restore_weights_from_backup(layer)
                self._networks.network_reset_cached_weight(layer)
        return original(layer, *args)

    def _detect_version(self, original, entry):
        """A card is for the family that its delta was made for; without one it is shown for all."""
        version = original(entry)
        if keys.VERSION not in entry.metadata:
            return version
        known = type(version)
        family = current_name(str(entry.metadata.get(keys.FAMILY, "")))
        return known[_VERSIONS[family]] if family in _VERSIONS else known.Unknown
