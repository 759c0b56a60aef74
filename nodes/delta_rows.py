"""The deltas that SaRA Loader has beside its first one, each a line of text: NAME = STRENGTH, STRENGTH_CLIP, off."""

from typing import NamedTuple

from ..sara_core.errors import DeltaError
from ..sara_core.numbers import read_list

STRONGEST = 100.0
_ENDING = ".safetensors"
_OFF = "off"


class DeltaRow(NamedTuple):
    """name: in the menu; strength, strength_clip: −100 … 100; is_on: whether it is applied at all."""

    name: str
    strength: float = 1.0
    strength_clip: float = 1.0
    is_on: bool = True


def parse_rows(text: str) -> list[DeltaRow]:
    """The deltas of a text, a line each. The strength is 1 where none is said, and holds for the text encoders too
    where theirs is not said; a line that ends in "off" is kept for another time.

    Raises DeltaError for a line that cannot be understood.
    """
    return [_row(line.strip()) for line in text.splitlines() if line.strip()]


def _row(line: str) -> DeltaRow:
    name, said = line, ""
    is_on = not line.endswith((f", {_OFF}", f"= {_OFF}"))
    if not is_on:
        line = line.removesuffix(_OFF).rstrip().removesuffix(",").rstrip()
        name = line.removesuffix("=").rstrip()
    if not line.endswith((_ENDING, "=")):  # a name may have an equals sign of its own
        name, _, said = (part.strip() for part in line.rpartition("="))
    try:
        strengths = read_list(said, "its strength") if said else [1.0]
    except DeltaError as error:
        raise _not_understood(line, f" ({str(error).rstrip('.')})") from error
    if not name or len(strengths) > 2:
        raise _not_understood(line)
    if any(abs(strength) > STRONGEST for strength in strengths):
        raise _not_understood(line, f" (strengths go from -{STRONGEST:g} to {STRONGEST:g})")
    return DeltaRow(name, strengths[0], strengths[-1], is_on)


def _not_understood(line: str, why: str = "") -> DeltaError:
    return DeltaError(
        f"The line '{line}' of more cannot be understood{why}. Write a delta's name, an equals sign and its strength, "
        "like 'style_00001_.safetensors = 0.8'."
    )
