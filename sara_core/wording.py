"""Numbers, sizes and lists as people read them in a sentence."""

from collections.abc import Iterable

from .foreign_text import NAME, plain

_SHOWN = 3
MIB, GIB = 1 << 20, 1 << 30


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


def readable_size(size: int) -> str:
    """Bytes: 1536 << 20 → "1.5 GiB"."""
    unit, name = (GIB, "GiB") if size >= GIB else (MIB, "MiB")
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
