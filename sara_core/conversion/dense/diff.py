"""Writing dense weight differences, which every ComfyUI loads with Load LoRA: `.diff` of weights, `.diff_b` of biases.

Of the module `diffusion_model.<module>` the file has the change of its weight as `….diff` and of its bias as
`….diff_b`; a parameter outside a module with a weight has its own whole name before `.diff`.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from ...delta import SparseDelta, SparseEntry, modelspec
from ...delta.entry import dense
from ...files import atomic, container, disk
from ...names.resolve import BIAS, PREFIX, WEIGHT, exchanged, prefix_of
from ..formats import Writer
from ..request import WriteRequest


class DiffWriter(Writer):
    """Every change as a dense float32 tensor."""

    summary = "dense differences, bit for bit, as large as the model"

    def write(self, delta: SparseDelta, path: Path, request: WriteRequest) -> str:
        """With the metadata of a LoRA, which programs take it for."""
        write(path, delta.entries, modelspec.as_lora(delta.metadata), request.overwrite)
        return f"Saved '{path.name}': {path.stat().st_size / 1e6:,.0f} MB of dense differences."


def write(
    path: str | os.PathLike, entries: Mapping[str, SparseEntry], metadata: Mapping[str, str], overwrite: bool = True
) -> None:
    """Write every change as a dense float32 tensor, one in memory at a time: 4 bytes for each element of each weight.

    entries: by ComfyUI's weight names, with any of the known prefixes or none

    Raises DeltaError if the file cannot be written; NameTakenError if it would replace something and must not.
    """
    named = {diff_name(name): entry for name, entry in host_names(entries).items()}
    header: dict = {container.METADATA: dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, entry in sorted(named.items()):
        begin, end = end, end + 4 * entry.numel
        header[name] = {"dtype": "F32", "shape": list(entry.shape), "data_offsets": [begin, end]}
    disk.check_room(path, end, "The file of dense differences")
    with atomic.writing(path, overwrite) as file:
        container.write_header(file, header)
        for _, entry in sorted(named.items()):
            container.write_tensor(file, dense(entry))


def host_names(entries: Mapping[str, SparseEntry]) -> dict[str, SparseEntry]:
    """The entries under the names that ComfyUI's loaded models have, with the prefix `diffusion_model.`; those of text
    encoders are called so already."""
    prefix = prefix_of(entries)
    return {exchanged(name, prefix, PREFIX): entry for name, entry in entries.items()}


def diff_name(name: str) -> str:
    """What a file calls the difference of a parameter of this full name."""
    if name.endswith(WEIGHT):
        return name.removesuffix(WEIGHT) + ".diff"
    return name.removesuffix(BIAS) + ".diff_b" if name.endswith(BIAS) else name + ".diff"
