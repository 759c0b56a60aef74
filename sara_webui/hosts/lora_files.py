"""The host's built-in extension for LoRAs: its list and its cards have deltas too, and of a prompt's tags it is given
those that are of LoRAs."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from ..shelf import Shelf
from ..tags import Tag
from .replacing import Replaced


class LoraFiles:
    """networks: the extension's module; shelf, own_folder: where deltas are

    tags: what the last prompt says of deltas in `<lora:…>`
    """

    def __init__(self, networks: ModuleType, shelf: Shelf, own_folder: Callable[[], Path]):
        self._networks, self._shelf, self._own_folder = networks, shelf, own_folder
        self._replaced: dict[tuple[object, str], Replaced] = {}
        self.tags: list[Tag] = []

    def wrap(self) -> None:
        """Put ours around the extension's functions; around what others have put there since, too."""
        for owner, name, around in self._functions():
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

    def _functions(self) -> Iterator[tuple[object, str, Callable]]:
        """Owner, name, and what is to be around each function."""
        page = sys.modules.get("ui_extra_networks_lora")
        yield self._networks, "load_networks", self._load_networks
        lists_some = hasattr(self._networks, "process_network_files")
        yield self._networks, "process_network_files" if lists_some else "list_available_networks", self._list_files
        yield (
            getattr(page, "ExtraNetworksPageLora", None), "allowed_directories_for_previews", self._preview_folders,
        )  # fmt: skip

    def _load_networks(self, original, names, te_multipliers=None, unet_multipliers=None, *further):
        self.tags, kept = [], []
        for number, name in enumerate(names):
            if (path := self._delta_of(name)) is None:
                kept.append(number)
                continue
            strengths = (given[number] if given else 1.0 for given in (te_multipliers, unet_multipliers))
            self.tags.append(Tag(name, *strengths, path))
        lists = (names, te_multipliers, unet_multipliers, *further)
        return original(*([given[number] for number in kept] if given else given for given in lists))

    def _delta_of(self, name: str) -> Path | None:
        """The file that the extension knows by this name, or that has come since; None for one that is no delta."""
        networks = self._networks
        hidden = name.lower() in networks.forbidden_network_aliases
        listed = (networks.available_networks if hidden else networks.available_network_aliases).get(name)
        path = Path(listed.filename) if listed is not None else self._shelf.find(name)
        return path if path is not None and self._shelf.is_delta(path) else None

    def _list_files(self, original, names: Sequence[str] | None = None):
        """names: of the files that are looked for, where the extension can look for some only"""
        original(*([] if names is None else [names]))
        for name, path in self._shelf.deltas().items():
            own = self._own_folder() in path.parents and path.stem not in self._networks.available_networks
            if own and (not names or path.stem in names):
                self._add(path)

    def _add(self, path: Path) -> None:
        entry = sys.modules["network"].NetworkOnDisk(path.stem, str(path))
        self._networks.available_networks[path.stem] = entry
        for alias in (path.stem, entry.alias):
            self._networks.available_network_aliases.setdefault(alias, entry)

    def _preview_folders(self, original, page) -> list:
        """From where the page may show pictures of cards."""
        return [*original(page), str(self._own_folder())]
