"""Random deltas and LoRAs for a UNet's file, where a host looks for them.

    python -m benchmarks.apply_.files UNET_FILE BASE_FOLDER ELEMENTS:WHERE…

Two deltas of each number of elements, spread as those below a threshold are over every Linear layer and convolution
(WHERE: all) or the Linear layers only (linear), and two LoRAs on every Linear layer. The values are of the size that
training reaches.
"""

import sys
from pathlib import Path

import safetensors.torch
import torch

from sara_core.delta import SparseDelta, SparseEntry
from sara_core.models.identity import identity_of

RANK = 16
CHANGE = 1e-3
VERSIONS = ("A", "B")
PREFIX = "diffusion_model."


def delta_name(elements: int, where: str, version: str) -> str:
    return f"delta-{elements}-{where}-{version}.safetensors"


def lora_name(version: str) -> str:
    return f"lora-{version}.safetensors"


def write(unet: Path, base: Path, wanted: list[tuple[int, str]]) -> None:
    weights = {PREFIX + name: weight for name, weight in safetensors.torch.load_file(unet).items()}
    layers = {name: weight.shape for name, weight in weights.items() if weight.dim() > 1}
    linear = {name: shape for name, shape in layers.items() if len(shape) == 2}
    identity = identity_of(weights, unet.name)
    for folder in ("sara", "loras"):
        (base / "models" / folder).mkdir(parents=True, exist_ok=True)
    for seed, version in enumerate(VERSIONS):
        generator = torch.Generator().manual_seed(seed)
        for elements, where in wanted:
            entries = random_entries(linear if where == "linear" else layers, elements, generator)
            SparseDelta(entries, identity).save(base / "models" / "sara" / delta_name(elements, where, version))
        safetensors.torch.save_file(random_lora(linear, generator), base / "models" / "loras" / lora_name(version))


def random_entries(layers: dict[str, torch.Size], elements: int, generator: torch.Generator) -> dict[str, SparseEntry]:
    density = elements / sum(shape.numel() for shape in layers.values())
    entries = {}
    for name, shape in layers.items():
        expected = shape.numel() * density
        gaps = torch.empty(int(expected + 10 * expected**0.5 + 10)).geometric_(density, generator=generator).long()
        indices = gaps.cumsum(0) - 1
        indices = indices[indices < shape.numel()].to(torch.int32)
        if len(indices):
            values = torch.randn(len(indices), generator=generator) * CHANGE
            entries[name] = SparseEntry(indices, values, tuple(shape))
    return entries


def random_lora(layers: dict[str, torch.Size], generator: torch.Generator) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, (rows, columns) in layers.items():
        module = name.removesuffix(".weight")
        tensors[f"{module}.lora_up.weight"] = torch.randn(rows, RANK, generator=generator) * CHANGE
        tensors[f"{module}.lora_down.weight"] = torch.randn(RANK, columns, generator=generator)
        tensors[f"{module}.alpha"] = torch.tensor(float(RANK))
    return tensors


if __name__ == "__main__":
    unet, base, *wanted = sys.argv[1:]
    pairs = [one.split(":") for one in wanted]
    write(Path(unet), Path(base), [(int(elements), where) for elements, where in pairs])
