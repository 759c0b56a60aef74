"""The one place where a number that comes in, from a node, an option or a script, is found to be one: finite, of its
kind, in its range, and other than 0 in float32 too, in which everything is computed."""

import math
import re
from numbers import Real
from typing import Any

from .errors import DeltaError, SaRAError

LARGEST = (2 - 2**-23) * 2.0**127
SMALLEST = 2.0**-149
SEED_RANGE = -(2**63), 2**64 - 1
# Of elements: more than any model has.
LARGEST_COUNT = 2**63 - 1
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")
# A comma that an English reader takes for the end of a number, and many others for its point.
_DECIMAL_COMMA = re.compile(r"(?<![0-9.eE])(?<![eE][+-])([0-9]+),([0-9]+)(?![0-9.])")
_MOST_CHARACTERS = 400


def checked(
    value: Any, name: str, least: float | None = None, most: float | None = None, *, whole: bool = False,
    above: float | None = None, error: type[SaRAError] = DeltaError,
) -> Any:  # fmt: skip
    """`value` itself or, if it is a number of numpy or torch, or a whole one written as 5e6, as Python's own.

    name: what it is called where it came in
    least, most: both included; above: not included; whole: whether it must be an integer

    Raises `error`, with the name, the value and what it may be, for anything else: text, True, NaN, infinity, what
    is out of range, and what is 0 or infinite in float32 and not in itself.
    """
    number = value
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        number = value.item()
    is_number = isinstance(number, Real) and not isinstance(number, bool)
    if is_number and whole and isinstance(number, float) and number.is_integer():
        number = int(number)
    if not is_number or not _fits(number, least, most, whole, above):
        raise error(f"{name} is {_shown(value)}: it takes {described(least, most, whole=whole, above=above)}.")
    return number if isinstance(number, (int, float)) else float(number)


def read(
    text: str, name: str, least: float | None = None, most: float | None = None, *, whole: bool = False,
    above: float | None = None, error: type[SaRAError] = DeltaError,
) -> Any:  # fmt: skip
    """The number in a text, in ASCII digits with a point, as `checked`: a float, or an int if it must be `whole`.

    Raises `error` for anything else that Python would take (nan, 1_000, digits of other scripts), a decimal comma, and
    what `checked` refuses.
    """
    plain = text.strip()
    limits = {"whole": whole, "above": above}
    pattern = _WHOLE_NUMBER if whole else _NUMBER
    if not pattern.fullmatch(plain) or len(plain) > _MOST_CHARACTERS:
        point = plain.replace(",", ".")
        hint = f" Write {point}, with a point." if point != plain and not whole and _NUMBER.fullmatch(point) else ""
        raise error(f"{name} is {_shown(text)}: it takes {described(least, most, **limits)}.{hint}")
    number = int(plain) if whole else float(plain)
    if not number and re.search("[1-9]", re.split("[eE]", plain)[0]):  # 1e-400
        raise error(f"{name} is {_shown(text)}, which is too small to be told from 0: write 0.")
    return checked(number, name, least, most, **limits, error=error)


def read_list(text: str, name: str, error: type[SaRAError] = DeltaError) -> list[float]:
    """Numbers with commas between them. Raises `error`, with what was read, where one is none, and where a comma may
    as well be a decimal one: "0,5" is 0.5 to many people, and 0 and 5 to a program."""
    if comma := _DECIMAL_COMMA.search(text):
        whole, part = comma.groups()
        raise error(
            f"{name}: '{comma[0]}' may be {whole}.{part} or the two numbers {whole} and {part}. Write {whole}.{part} "
            f"with a point, or {whole}, {part} with a space."
        )
    return [read(part, name, error=error) for part in text.split(",")]


def described(
    least: float | None = None, most: float | None = None, *, whole: bool = False, above: float | None = None
) -> str:
    """What a number may be: "a whole number from 1 to 1024", "a number above 0 and at most 1"."""
    if least is most is above is None and not whole:
        return "a finite number that float32 can hold"
    low = None if least is None else f"from {_plain(least)}" if most is not None else f"not below {_plain(least)}"
    low = f"above {_plain(above)}" if above is not None else low
    joint = " to " if low and low.startswith("from") else " and at most " if low else "at most "
    high = "" if most is None else f"{joint}{_plain(most)}"
    return " ".join(filter(None, ["a", "whole" if whole else "", "number", f"{low or ''}{high}"]))


def _fits(number: Real, least: float | None, most: float | None, whole: bool, above: float | None) -> bool:
    if whole:
        fits = isinstance(number, int)
    else:
        fits = -LARGEST <= number <= LARGEST and (number == 0 or abs(number) >= SMALLEST)
    return (
        fits and (least is None or number >= least) and (most is None or number <= most)
        and (above is None or number > above)
    )  # fmt: skip


def _plain(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def _shown(value: Any) -> str:
    """As an error quotes it, on a short line whatever it is."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "not a number (NaN)"}.get(str(value), "infinite")
    try:
        text = f"'{value}'" if isinstance(value, str) else repr(value)
    except ValueError:  # Python writes no number of thousands of digits
        return "a number of thousands of digits"
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:60]}…"
