"""What a picture is trained under: the text of its own, or one for all that have none, with the trigger word before."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Captioning:
    """trigger: a word, or several, before every caption that does not have it already; for_all: the caption of the
    pictures that have none of their own; takes_any: whether a picture with none of the three is trained on, too, with
    an empty caption"""

    trigger: str = ""
    for_all: str = ""
    takes_any: bool = False

    def caption(self, own: str | None) -> str | None:
        """What a picture is trained under; None if it is left out.

        own: the text of its caption file; None without one
        """
        if own is None and not (self.for_all.strip() or self.trigger.strip() or self.takes_any):
            return None
        text, trigger = own or self.for_all.strip(), self.trigger.strip()
        if not trigger or _has(text, trigger):
            return text
        return f"{trigger}, {text}" if text else trigger

    def without_trigger(self, caption: str) -> str:
        """A caption without the trigger word, wherever it stands, and without its comma; empty if there is none."""
        trigger = self.trigger.strip()
        if not trigger:
            return ""
        left = re.sub(rf"{_as_words(trigger)}\s*,?", " ", caption, flags=re.IGNORECASE)
        return " ".join(left.split()).strip(" ,")


def _has(text: str, words: str) -> bool:
    """Whether these words stand in the text as they are, not as a part of others; the size of letters is the same to
    most text encoders."""
    return re.search(_as_words(words), text, re.IGNORECASE) is not None


def _as_words(words: str) -> str:
    """A pattern."""
    return rf"(?<!\w){re.escape(words)}(?!\w)"
