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


def _has(text: str, words: str) -> bool:
    """Whether these words stand in the text as they are, not as a part of others; the size of letters is the same to
    most text encoders."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE) is not None
