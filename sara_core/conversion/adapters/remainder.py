"""What LyCORIS keeps of a difference beside the LoRA it makes of it: the largest of what the LoRA leaves, sparse.

In the file a module has `bias_indices`, int16 [2, n], rows and columns of the weight as a matrix; `bias_values`, float
[n]; and `bias_size`, int16 [2], the matrix' sides. Beside a Tucker core LyCORIS writes the tuned weights' own values
there instead of what is left, so that those are no change.
"""

from collections.abc import Mapping

import torch

from ...delta.entry import all_finite
from ...errors import DeltaError

PARTS = ("remainder_indices", "remainder_values", "remainder_size")
_UNSIGNED = 0xFFFF  # int16 counts beyond 32767 as negative


def remainder(module: str, tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """The sparse part of the change of a weight, dense, float32 of its shape.

    tensors: the module's, by part; Raises DeltaError unless they are positions and values of this weight.
    """
    try:
        indices, values, size = (tensors[part] for part in PARTS)
        positions, sides = _whole_numbers(indices), _whole_numbers(size)
        dense = torch.zeros(shape).flatten(1)
        rows, columns = positions
        fits = sides.tolist() == list(dense.shape) and values.is_floating_point() and all_finite(values.float())
        if not fits or len(rows) and (int(rows.max()) >= dense.shape[0] or int(columns.max()) >= dense.shape[1]):
            raise IndexError(module)
        dense[rows, columns] = values.float()
    except (KeyError, IndexError, ValueError, RuntimeError, TypeError) as error:
        raise DeltaError(
            f"The sparse remainder of the file's module '{module}' is damaged, or of another weight. Give the base "
            "that the file was made for, or get it again from where it came from."
        ) from error
    return dense.reshape(shape)


def _whole_numbers(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype == torch.int16:
        return tensor.long() & _UNSIGNED
    if tensor.dtype not in (torch.int32, torch.int64) or tensor.numel() and int(tensor.min()) < 0:
        raise TypeError(tensor.dtype)
    return tensor.long()
