"""Sentences, and numbers, sizes and lists as people read them in one."""

import re
from collections.abc import Iterable

from .foreign_text import NAME, plain

_SHOWN = 3
MB, GB = 10**6, 10**9
_PLACE = re.compile(r"\{(\w+)\}")


class Sentence(str):
    """A sentence in English that can also be said in another language, because it knows what it is made of.

    key: the sentence with the names of its values in braces; values: what stands there, texts, numbers or Sentences
    """

    key: str
    values: dict[str, object]

    def __new__(cls, key: str, **values: object) -> "Sentence":
        filled = _PLACE.sub(lambda place: str(values.get(place[1], place[0])), key)
        sentence = super().__new__(cls, filled)
        sentence.key, sentence.values = key, values
        return sentence

    def plain(self) -> "Sentence":
        """The same, with nothing in its values that whatever shows them would obey (foreign_text.py)."""
        return Sentence(self.key, **{name: _plain(value) for name, value in self.values.items()})


def _plain(value: object) -> object:
    if isinstance(value, Sentence):
        return value.plain()
    return plain(value) if isinstance(value, str) else value


def listed(names: Iterable[str]) -> str:
    """The first few names, anybody's, and how many more there are, for a sentence."""
    names = sorted(names)
    shown = ", ".join(plain(name, NAME) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def one_of(choices: Iterable[str]) -> str:
    """Two or more choices → "a, b or c"."""
    *first, last = choices
    return f"{', '.join(first)} or {last}"


def counted(count: int, what: str) -> str:
    """1, "image" → "1 image"; 1234 → "1,234 images"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def both(first: str, second: str) -> Sentence:
    """Two sentences, one behind the other."""
    return Sentence("{first} {second}", first=first, second=second)


def amount(count: int, one: str, many: str) -> Sentence:
    """`counted` for a sentence in any language. many: "{count} pictures"."""
    return Sentence(one) if count == 1 else Sentence(many, count=f"{count:,}")


def counted_pictures(count: int) -> Sentence:
    """"1 picture", or "1,234 pictures"."""
    return amount(count, "1 picture", "{count} pictures")


def readable_size(size: int) -> str:
    """Bytes: 1_500_000_000 → "1.5 GB"."""
    unit, name = (GB, "GB") if size >= GB else (MB, "MB")
    return f"{rounded(size / unit)} {name}"


def clock_time(seconds: float) -> str:
    """3723.4 → "1:02:03"; 9 → "0:09"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def rounded(value: float) -> str:
    """A number not below 0 with at most two digits after the point: 0.23, 1.2, 23."""
    return f"{value:.2f}" if value < 0.995 else f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def shown(error: BaseException, most: int = 200) -> str:
    """What an error of a library says, on one line of at most `most` characters; it may quote a file's content."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else f"{text[:most]}…"


def capitalised(text: str) -> str:
    """As a sentence begins: "a whole model" → "A whole model"; what is large already stays so."""
    return text[:1].upper() + text[1:]
