"""What a prompt says of a delta: `<sara:style:0.8>`, or with a strength of its own for the text encoders and for the
diffusion model, as LoRAs have them: `<sara:style:0.5:0.8>`, `<sara:style:te=0.5:unet=0.8>`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sara_core.errors import DeltaError
from sara_core.numbers import checked


class Tag(NamedTuple):
    """name: as the prompt has it; text, unet: the strengths for text encoders and for the diffusion model
    path: of the file, where the host has found it already"""

    name: str
    text: float = 1.0
    unet: float = 1.0
    path: Path | None = None


def read(positional: Sequence[str], named: Mapping[str, str]) -> Tag:
    """The tag of what stands between its colons.

    Raises DeltaError for one without a name, or with a strength that is no number.
    """
    if not positional or not positional[0].strip():
        raise DeltaError("A sara tag has no name: it begins with that of the file, before the strength.")
    name = positional[0].strip()
    text = _strength(name, named.get("te", positional[1] if len(positional) > 1 else 1.0))
    unet = _strength(name, named.get("unet", positional[2] if len(positional) > 2 else text))
    return Tag(name, text, unet)


def _strength(name: str, said: str | float) -> float:
    try:
        return checked(float(said), f"The strength of '{name}'")
    except ValueError:
        raise DeltaError(f"'{said}' in the tag of '{name}' is no number. A strength is one, such as 0.8.") from None
