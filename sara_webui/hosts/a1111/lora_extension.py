"""The host's built-in extension for LoRAs: it lets deltas pass it by, and does not see them in the weights it copies.

It puts LoRAs into a layer's weights in the layer's next forward: it takes a copy of the weight first, if it has none,
brings the weight back to its copy, and adds LoRA after LoRA.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch

from sara_core.delta import metadata as keys
from sara_core.errors import UnsupportedModelError
from sara_core.names.family_names import current_name

from ...in_place import InPlace
from ...shelf import Shelf
from ...tags import Tag
from ..replacing import Replaced

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


class LoraExtension:
    """networks: the extension's module; weights: what is on the model; shelf, own_folder: where deltas are

    tags: what the last prompt says of deltas in `<lora:…>`
    """

    def __init__(self, networks: ModuleType, weights: InPlace, shelf: Shelf, own_folder: Callable[[], Path]):
        self._networks, self._weights, self._shelf, self._own_folder = networks, weights, shelf, own_folder
        self._replaced: dict[tuple[object, str], Replaced] = {}
        self.tags: list[Tag] = []

    def wrap(self) -> None:
        """Put ours around the extension's functions; around what others have put there since, too."""
        network, page = sys.modules.get("network"), sys.modules.get("ui_extra_networks_lora")
        for owner, name, around in (
            (self._networks, "load_networks", self._load_networks),
            (self._networks, "network_apply_weights", self._apply_weights),
            (self._networks, "network_forward", self._forward),
            (self._networks, "process_network_files", self._process_files),
            (getattr(network, "NetworkOnDisk", None), "detect_version", self._detect_version),
            (getattr(page, "ExtraNetworksPageLora", None), "allowed_directories_for_previews", self._preview_folders),
        ):
            known = self._replaced.get((owner, name))
            if owner is not None and (known is None or not known.is_in_place()):
                self._replaced[owner, name] = Replaced(owner, name, around)

    def unwrap(self) -> None:
        """Give the extension its functions back."""
        for replaced in reversed(self._replaced.values()):
            replaced.undo()
        self._replaced.clear()
        self.tags = []

    def list_anew(self) -> None:
        """Let the extension read its folders, and ours, so that the cards show what there is."""
        self._networks.list_available_networks()

    def restore(self, sd_model: torch.nn.Module) -> None:
        """Take the extension's own LoRAs off every layer now, which it does in a layer's next forward otherwise. None
        may be loaded."""
        layers = {id(layer): layer for layer in getattr(sd_model, "network_layer_mapping", {}).values()}
        with torch.no_grad():
            for layer in layers.values():
                if getattr(layer, "network_current_names", ()):
                    self._networks.network_apply_weights(layer)

    def _load_networks(self, original, names, te_multipliers=None, unet_multipliers=None, dyn_dims=None):
        self.tags, kept = [], []
        for number, name in enumerate(names):
            if (path := self._delta_of(name)) is None:
                kept.append(number)
                continue
            strengths = (given[number] if given else 1.0 for given in (te_multipliers, unet_multipliers))
            self.tags.append(Tag(name, *strengths, path))
        lists = (names, te_multipliers, unet_multipliers, dyn_dims)
        return original(*([given[number] for number in kept] if given else given for given in lists))

    def _delta_of(self, name: str) -> Path | None:
        """The file that the extension knows by this name, or that has come since; None for one that is no delta."""
        networks = self._networks
        hidden = name.lower() in networks.forbidden_network_aliases
        listed = (networks.available_networks if hidden else networks.available_network_aliases).get(name)
        path = Path(listed.filename) if listed is not None else self._shelf.find(name)
        return path if path is not None and self._shelf.is_delta(path) else None

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

    def _process_files(self, original, names: Sequence[str] | None = None):
        original(names)
        for name, path in self._shelf.deltas().items():
            own = self._own_folder() in path.parents and path.stem not in self._networks.available_networks
            if own and (not names or path.stem in names):
                self._add(path)

    def _add(self, path: Path) -> None:
        entry = sys.modules["network"].NetworkOnDisk(path.stem, str(path))
        self._networks.available_networks[path.stem] = entry
        for alias in (path.stem, entry.alias):
            self._networks.available_network_aliases.setdefault(alias, entry)

    def _detect_version(self, original, entry):
        """A card is for the family that its delta was made for; without one it is shown for all."""
        version = original(entry)
        if keys.VERSION not in entry.metadata:
            return version
        known = type(version)
        family = current_name(str(entry.metadata.get(keys.FAMILY, "")))
        return known[_VERSIONS[family]] if family in _VERSIONS else known.Unknown

    def _preview_folders(self, original, page) -> list:
        """From where the page may show pictures of cards."""
        return [*original(page), str(self._own_folder())]
