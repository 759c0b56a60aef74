"""What a model is like, as far as the names and shapes of its weights say: enough to foretell a training of it."""

import math
from typing import NamedTuple

from ..errors import DeltaError
from .families import family_of
from .recognition import Shapes


class Outline(NamedTuple):
    """A diffusion model.

    family: in people's words, None for one that is not known
    elements: of all its weights; trainable: of those of its Linear and Conv layers, and weights: how many these are
    """

    family: str | None
    elements: int
    trainable: int
    weights: int


def outline_of(shapes: Shapes) -> Outline:
    """Of all parameters of a diffusion model (name → shape), as ComfyUI or diffusers calls them. An embedding, which no
    shape tells from a Linear layer, counts as one: diffusion models have few."""
    try:
        known = family_of(shapes, whole=True)
    except DeltaError:  # of several families, and their names do not tell which
        known = None
    sizes = [math.prod(shape) for name, shape in shapes.items() if name.endswith(".weight") and len(shape) > 1]
    return Outline(known and known.name, sum(map(math.prod, shapes.values())), sum(sizes), len(sizes))
