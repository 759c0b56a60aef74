"""Errors a user may see. Every message names the cause and the remedy in the user's words."""

from .foreign_text import plain
from .wording import Sentence


class SaRAError(Exception):
    """Base of every error this project raises on purpose; hosts show its message without a traceback.

    What it is shown as is plain text in one line, whatever names of a file are in the message (foreign_text.py).
    """

    def __str__(self) -> str:  # and no constructor: torch.compile cannot trace one
        return plain(super().__str__())

    @property
    def said(self) -> str:
        """The same text; a Sentence if it was raised with one."""
        words = self.args[0] if self.args else ""
        return words.plain() if isinstance(words, Sentence) else str(self)


class DeltaError(SaRAError):
    """A delta file or its content is damaged, unsafe, or does not fit the model it is applied to."""


class NameTakenError(DeltaError):
    """A file was not to replace another, and there is something under its name."""


class SelectionError(SaRAError):
    """The rule for choosing weights selects nothing, everything, or cannot be applied to this model."""


class UnsupportedModelError(SaRAError):
    """A model, layer or setting that cannot be trained or patched; the message names it."""


class TrainingError(SaRAError):
    """Training cannot start or go on; the message names the knob to turn."""
