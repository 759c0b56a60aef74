"""What a round of trainings in a WebUI is given: checkpoints, deltas that fit and that do not, pictures."""

import shutil
from pathlib import Path

import safetensors.torch
import torch
from PIL import Image

from benchmarks.apply_.files import random_entries
from benchmarks.lib.process import run_module
from benchmarks.webui_.checkpoint import write_config
from benchmarks.webui_.server import A1111, WebUI
from sara_core.delta import SparseDelta, SparseEntry
from sara_core.delta import metadata as keys

FIRST, SECOND = "first", "second"
FITTING, FOREIGN, BROKEN, MISSING = "fitting", "foreign", "broken", "missing"
PICTURES, SIDE = "cats", 128
DENSITY, CHANGE = 0.02, 50
PREFIX = "diffusion_model."


def write(webui: WebUI, data: Path, unet: Path, layout: str) -> None:
    """Into a WebUI's data folder: two checkpoints of which the second has other weights, deltas, pictures."""
    if webui.kind.has_pipelines:
        _write_pipelines(webui.folder("Diffusers"), unet)
    else:
        _write_checkpoints(webui, unet, layout)
    _write_deltas(webui.folder("sara"), unet)
    _write_pictures(data / "sara" / "pictures" / PICTURES)


def _write_checkpoints(webui: WebUI, unet: Path, layout: str) -> None:
    models = webui.folder("Stable-diffusion")
    first, second = models / f"{FIRST}.safetensors", models / f"{SECOND}.safetensors"
    run_module("benchmarks.webui_.checkpoint", [str(unet), "float32", str(first)])
    _write_another(first, second)
    if webui.kind is A1111:
        for path in (first, second):
            write_config(webui.kind.checkout, layout, path.with_suffix(".yaml"))


def _write_pipelines(models: Path, unet: Path) -> None:
    run_module("benchmarks.webui_.pipeline", ["folder", str(unet), "float32", str(models / FIRST)])
    shutil.copytree(models / FIRST, models / SECOND)
    weights = models / SECOND / "unet" / "diffusion_pytorch_model.safetensors"
    _write_another(weights, weights)


def _write_another(file: Path, target: Path) -> None:
    weights = safetensors.torch.load(file.read_bytes())
    for name, weight in weights.items():
        if name.endswith("to_q.weight"):
            weight.mul_(1.5)
    safetensors.torch.save_file(weights, target)


def _write_deltas(folder: Path, unet: Path) -> None:
    shapes = {PREFIX + name: weight.shape for name, weight in safetensors.torch.load_file(unet).items()}
    elements = int(DENSITY * sum(shape.numel() for shape in shapes.values()))
    entries = random_entries(shapes, elements, torch.Generator().manual_seed(0))
    entries = {name: entry._replace(values=entry.values * CHANGE) for name, entry in entries.items()}
    SparseDelta(entries, {keys.FAMILY: "SD1.5"}).save(folder / f"{FITTING}.safetensors")
    entry = SparseEntry(torch.tensor([1], dtype=torch.int32), torch.tensor([1.0]), (1280, 2816))
    foreign = SparseDelta({f"{PREFIX}label_emb.0.0.weight": entry}, {keys.FAMILY: "SDXL"})
    foreign.save(folder / f"{FOREIGN}.safetensors")
    whole = (folder / f"{FITTING}.safetensors").read_bytes()
    (folder / f"{BROKEN}.safetensors").write_bytes(whole[: len(whole) // 2])


def _write_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    ramp = torch.linspace(0, 255, SIDE).to(torch.uint8)
    channels = [one.expand(SIDE, SIDE) for one in (ramp, ramp[:, None], ramp.flip(0))]
    for number in range(3):
        pixels = torch.stack(channels, -1).roll(number, -1).contiguous()
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a (large) cat, number {number} BREAK", encoding="utf-8")
