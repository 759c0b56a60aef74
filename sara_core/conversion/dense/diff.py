"""Writing dense weight differences, which every ComfyUI loads with Load LoRA: `.diff` of weights, `.diff_b` of biases.

Of the module `diffusion_model.<module>` the file has the change of its weight as `….diff` and of its bias as
`….diff_b`; a parameter outside a module with a weight has its own whole name before `.diff`.
"""

import math
import os
from collections.abc import Mapping

import torch

from ...files import atomic
from ...tensors.elements import scatter_
from ...delta.entry import SparseEntry
from ...names.resolve import prefix_of
from ...files import container

_PREFIX, _WEIGHT, _BIAS = "diffusion_model.", ".weight", ".bias"


def write(
    path: str | os.PathLike, entries: Mapping[str, SparseEntry], metadata: Mapping[str, str], overwrite: bool = True
) -> None:
    """Write every change as a dense float32 tensor, one in memory at a time: 4 bytes for each element of each weight.

    Raises DeltaError if the file cannot be written; NameTakenError if it would replace something and must not.
    """
    named = {diff_name(name): entry for name, entry in host_names(entries).items()}
    header: dict = {container.METADATA: dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, entry in sorted(named.items()):
        begin, end = end, end + 4 * entry.numel
        header[name] = {"dtype": "F32", "shape": list(entry.shape), "data_offsets": [begin, end]}
    with atomic.writing(path, overwrite) as file:
        container.write_header(file, header)
        for _, entry in sorted(named.items()):
            container.write_tensor(file, dense(entry))


def dense(entry: SparseEntry) -> torch.Tensor:
    """The change of the whole weight, float32."""
    change = torch.zeros(math.prod(entry.shape)).view(entry.shape)
    return scatter_(change, entry.indices.cpu(), entry.values.float().cpu())


def host_names(entries: Mapping[str, SparseEntry]) -> dict[str, SparseEntry]:
    """The entries under the names that ComfyUI's loaded models have."""
    prefix = prefix_of(entries)
    return {_PREFIX + name.removeprefix(prefix): entry for name, entry in entries.items()}


def diff_name(name: str) -> str:
    """What a file calls the difference of a parameter."""
    if name.endswith(_WEIGHT):
        return name.removesuffix(_WEIGHT) + ".diff"
    return name.removesuffix(_BIAS) + ".diff_b" if name.endswith(_BIAS) else name + ".diff"
