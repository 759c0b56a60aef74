"""Blocks of a model, as people call and order them."""

import re

_DIGITS = tuple("0123456789")
# A longer one is no number of a block, and Python refuses to read very long ones.
_NUMBER = re.compile(r"([0-9]{1,18})")


def block_of(name: str) -> str:
    """The block a weight lies in, as people call it: its name up to the first number, without the model's prefix."""
    parts = name.removeprefix("model.").removeprefix("diffusion_model.").split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: number + 1])


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sorting key that puts block 10 after block 9: the name in pieces, the numbers in it as numbers."""
    return [(int(part), "") if part[:1] in _DIGITS else (-1, part) for part in _NUMBER.split(name)]
