"""What a training will take, said before the model is there: from its size alone, coarser than estimate.py."""

from typing import NamedTuple

# Per trained element, with AdamW: Δ, its gradient, two moments, the last good values, position and base value.
ELEMENT = 28
# Bytes of a forward and backward per pixel of the latents and picture, in 16 bits, with gradient checkpointing and
# without: measured on a GPU (docs/performance.md); with checkpointing SD1.5's on a CPU, halved for its 32 bits.
_ACTIVATIONS = {"SD1.5": (138_000, 199_000), "SDXL": (44_000, 331_000)}
# How many pixels of a picture, on a side, are one of the latents.
_PIXELS = {"Wan 2.2": 16, "Flux.2": 16}
_USUAL_PIXELS = 8


class Expected(NamedTuple):
    """Bytes on the device that trains; is_least: what a forward and backward takes is not known and left out."""

    size: int
    is_least: bool


def latent_area(family: str | None, pixels: int) -> int:
    """How many pixels the latents of a picture of so many pixels have, by the family of the model."""
    return pixels // _PIXELS.get(family, _USUAL_PIXELS) ** 2


def activations(family: str | None, area: int, pictures: int, checkpointing: bool, bytes_a_number: int) -> int | None:
    """Bytes that a forward and backward holds at its peak, roughly; None for families of which none is known.

    area: of the latents, in pixels; pictures: per forward pass; bytes_a_number: 2 or 4, what is computed in
    """
    if family not in _ACTIVATIONS:
        return None
    return _ACTIVATIONS[family][0 if checkpointing else 1] * area * pictures * bytes_a_number // 2


def expected_memory(elements: int, trained: int, working: int | None, bytes_a_number: int) -> Expected:
    """elements: of the model; trained: of them; working: bytes of a forward and backward, None if not known;
    bytes_a_number: of a weight"""
    return Expected(elements * bytes_a_number + trained * ELEMENT + (working or 0), working is None)
