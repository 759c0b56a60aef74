"""What of a delta is left out on another variant of its model: the change of a first layer that takes other channels.

Variants for inpainting, editing, depth and image to video have the weights of their model, but for the first layer, to
whose input they add channels. All other changes mean the same there; those of the first layer have no place.
"""

from collections.abc import Mapping

from ..names.entrance import is_first_layer
from .entry import SparseEntry

Shape = tuple[int, ...]


def left_out(entries: Mapping[str, SparseEntry], shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Which of the entries are left out on a model, each with a sentence on it for people.

    entries: by the model's names; shapes: name → shape, of these weights at least. Nothing is left out unless there are
        other entries: whether those fit is not asked here.
    """
    said = {name: _sentence(name, entry.shape, shapes[name]) for name, entry in entries.items()
            if is_first_layer(name) and takes_other_inputs(entry.shape, shapes[name])}  # fmt: skip
    return said if len(said) < len(entries) else {}


def takes_other_inputs(shape: Shape, other: Shape) -> bool:
    """Whether a Linear or convolution layer's weight has another shape in the number of its input channels only."""
    alike = len(shape) == len(other) > 1 and (shape[0], *shape[2:]) == (other[0], *other[2:])
    return alike and shape[1] != other[1]


def _sentence(name: str, shape: Shape, other: Shape) -> str:
    return (
        f"Left out: the change of '{name}', the first layer, which takes {other[1]} channels in this model and "
        f"{shape[1]} in the one the delta was made for (another variant, such as one for inpainting). All else fits."
    )
