"""A tiny model of no known family, and adapter files for it."""

import torch
from safetensors.torch import save_file

from sara_core.conversion.read import read_delta
from sara_core.delta.entry import dense
from sara_core.names.resolve import PREFIX

LAYER, CONVOLUTION, NORM = "blocks.0.q", "blocks.0.conv", "blocks.0.norm"
ROWS, COLUMNS = 8, 6
SHAPES = {
    **{f"blocks.{block}.{layer}.weight": (ROWS, COLUMNS) for block in (0, 1) for layer in "qkv"},
    "blocks.0.q.bias": (ROWS,),
    "blocks.0.conv.weight": (6, 4, 3, 3),
    "blocks.0.square.weight": (4, 4, 3, 3),
    "blocks.0.norm.weight": (6,),
    "blocks.0.norm.bias": (6,),
}


def weights():
    """The model's weights: the same each time."""
    generator = torch.Generator().manual_seed(7)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def factors(rows=ROWS, columns=COLUMNS, rank=2):
    """The two factors of a LoRA, by the names that most trainers have."""
    return {".lora_up.weight": numbers(rows, rank, seed=1), ".lora_down.weight": numbers(rank, columns, seed=2)}


def base_file(folder):
    save_file(weights(), folder / "base.safetensors")
    return folder / "base.safetensors"


def saved(path, tensors, metadata=None):
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata)
    return path


def of_module(module, tensors):
    return {module + part: tensor for part, tensor in tensors.items()}


def changes(path, base, **options):
    """Weight → dense change of a file, and what the conversion says."""
    conversion = read_delta(path, base, density=1.0, **options)
    found = {name.removeprefix(PREFIX): dense(entry) for name, entry in conversion.delta.entries.items()}
    return found, conversion
