"""The files that gpu_host.py works with: a checkpoint with random weights, deltas and LoRAs for it, and pictures.

    python -m benchmarks.gpu_host_.files LAYOUT FOLDER       with ComfyUI's folder in COMFYUI_PATH

Everything is drawn from seeds, so nothing need be fetched; the text encoder and the autoencoder are the demo's.
"""

import sys
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from PIL import Image, ImageDraw

from benchmarks.apply_.files import PREFIX, VERSIONS, lora_name, random_entries, random_lora
from benchmarks.lib.random_unet import random_weights
from demo import checkpoint
from demo.checkpoint import UNET_PREFIX
from devtools.comfyui.install import prepare
from sara_core.delta import SparseDelta, SparseEntry
from sara_core.models.identity import identity_of

CHECKPOINT = "random.safetensors"
# Layout → elements of its deltas: half a per cent, and six.
ELEMENTS = {"sd15": (5_000_000, 50_000_000), "small": (90_000, 900_000)}
PICTURES = 4


def delta_name(elements: int, version: str) -> str:
    return f"delta-{elements}-{version}.safetensors"


def write(layout: str, folder: Path) -> None:
    """Write checkpoints/, sara/ and loras/ into `folder`. Needs comfy on the path."""
    weights = {name: weight.half() for name, weight in random_weights(layout).items()}
    checkpoint.assemble(
        folder / "checkpoints" / CHECKPOINT, {UNET_PREFIX + name: weight for name, weight in weights.items()}
    )
    weights = {PREFIX + name: weight for name, weight in weights.items()}
    layers = {name: weight.shape for name, weight in weights.items() if weight.dim() > 1}
    linear = {name: shape for name, shape in layers.items() if len(shape) == 2}
    identity = identity_of(weights, CHECKPOINT)
    for kind in ("sara", "loras"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for seed, version in enumerate(VERSIONS):
        generator = torch.Generator().manual_seed(seed)
        for elements in ELEMENTS[layout]:
            delta = SparseDelta(seen(random_entries(layers, elements, generator)), identity)
            delta.save(folder / "sara" / delta_name(elements, version))
        safetensors.torch.save_file(random_lora(linear, generator), folder / "loras" / lora_name(version))


def seen(entries: dict[str, SparseEntry]) -> dict[str, SparseEntry]:
    """Ten times as large, so that a picture of few steps shows them."""
    return {name: SparseEntry(entry.indices, entry.values * 10, entry.shape) for name, entry in entries.items()}


def write_pictures(folder: Path, size: int) -> None:
    """Circles of several colours, with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, colour in zip(range(PICTURES), ("red", "green", "blue", "purple")):
        picture = Image.new("RGB", (size, size), "yellow")
        edge = size // (4 + number)
        ImageDraw.Draw(picture).ellipse((edge, edge, size - edge, size - edge), fill=colour)
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} circle on a yellow ground", encoding="utf-8")


def write_expected(checkpoint_file: Path, path: Path, dtype: str, delta: Path | None, strength: float = 1.0) -> int:
    """Write what the library makes of the checkpoint's diffusion model in a dtype, on the CPU, by the host's keys;
    returns how many elements the delta changes."""
    weights = {}
    with safetensors.safe_open(checkpoint_file, framework="pt") as file:
        for name in file.keys():
            if name.startswith(UNET_PREFIX):
                weight = file.get_tensor(name).to(getattr(torch, dtype), copy=True)
                weights[PREFIX + name.removeprefix(UNET_PREFIX)] = weight
    changed = 0
    if delta is not None:
        loaded = SparseDelta.load(delta)
        loaded.apply_(weights, strength)
        changed = loaded.nnz
    safetensors.torch.save_file(weights, path)
    return changed


if __name__ == "__main__":
    layout, folder = sys.argv[1:]
    sys.path.insert(0, str(prepare().folder))
    from comfy.cli_args import args

    args.cpu = True
    write(layout, Path(folder))
