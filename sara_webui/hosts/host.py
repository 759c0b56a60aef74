"""What the face asks of a WebUI; each has a module of its own beside this one."""

from pathlib import Path
from typing import Any, Protocol

from ..shelf import Shelf


class Host(Protocol):
    """A WebUI. Its methods are called in the host's own threads, one at a time, under its lock where it has one.

    name: what its people call it; shelf: the deltas there are
    """

    name: str
    shelf: Shelf

    def install_networks(self) -> None:
        """Make `<sara:…>` and `<lora:…>` work for deltas; also after another call of it, or after `uninstall`."""

    def uninstall(self) -> None:
        """Take every delta off, and give the host back all that was replaced in it."""

    def folders(self) -> list[Path]:
        """Where deltas are looked for, those that exist or not; new ones are saved in the first."""

    def model(self) -> Any:
        """The loaded model, as the host has it; None while none is loaded."""

    def take_off_everything(self) -> None:
        """Every weight as its checkpoint has it, bit for bit: deltas and the host's own networks are off."""

    def refresh(self) -> None:
        """Let the host list its files anew, so that a new delta is among the cards."""

    def paste(self, infotext: str, parameters: dict) -> None:
        """A picture's parameters come back into the page: its deltas have the names that their files have now."""
