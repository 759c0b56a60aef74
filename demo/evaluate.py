"""Draws samples through ComfyUI's own nodes, in this process, and lets the judge count what is right.

    COMFYUI_PATH=… <ComfyUI's Python> -m demo.evaluate CHECKPOINT [--count 200] [--grid samples.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from . import comfy_host, digits, settings


class Checkpoint(NamedTuple):
    """What CheckpointLoaderSimple gives: ComfyUI's MODEL, CLIP and VAE."""

    model: Any
    clip: Any
    vae: Any


class Score(NamedTuple):
    """Shares of a set of samples, 0..1: the asked-for digit recognised; judged to be in the style."""

    right: float
    styled: float


def load(path: str | Path) -> Checkpoint:
    """Load a checkpoint file by CheckpointLoaderSimple; `comfy_host.prepare` must have been called."""
    import folder_paths

    import nodes

    path = Path(path).resolve()
    folder_paths.add_model_folder_path("checkpoints", str(path.parent))
    return Checkpoint(*nodes.CheckpointLoaderSimple().load_checkpoint(path.name))


def draw(
    checkpoint: Checkpoint, prefix: str = "", count: int = 200, seed: int = 0, steps: int = settings.SAMPLE_STEPS
) -> tuple[np.ndarray, np.ndarray]:
    """`count` samples, the ten digits in turn: pictures float32 [count, 64, 64, 3] in 0..1, asked digits [count]."""
    import nodes

    each = count // 10
    pictures = []
    with torch.inference_mode():
        (negative,) = nodes.CLIPTextEncode().encode(checkpoint.clip, "")
        for digit in range(10):
            (positive,) = nodes.CLIPTextEncode().encode(checkpoint.clip, digits.caption(digit, prefix))
            (empty,) = nodes.EmptyLatentImage().generate(settings.SIZE, settings.SIZE, each)
            (latent,) = nodes.KSampler().sample(
                checkpoint.model, seed + digit, steps, settings.GUIDANCE, settings.SAMPLER,
                settings.SCHEDULER, positive, negative, empty,
            )  # fmt: skip
            (picture,) = nodes.VAEDecode().decode(checkpoint.vae, latent)
            pictures.append(picture.numpy())
    return np.concatenate(pictures), np.repeat(np.arange(10), each)


def score(pictures: np.ndarray, asked: np.ndarray) -> Score:
    """Judge samples; asked: the digit each should show."""
    from . import judge

    return Score(float((judge.judge_digits(pictures) == asked).mean()), float(judge.judge_styled(pictures).mean()))


def grid(pictures: np.ndarray, asked: np.ndarray, columns_each: int = 10) -> Image.Image:
    """One row per digit."""
    rows = [np.concatenate(list(pictures[asked == digit][:columns_each]), axis=1) for digit in range(10)]
    return Image.fromarray((np.concatenate(rows) * 255).round().astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder (default: $COMFYUI_PATH)")
    parser.add_argument("--count", type=int, default=200, help="samples per prompt style (default: 200)")
    parser.add_argument("--prefix", action="append", help="words before the caption; may be given several times")
    parser.add_argument("--grid", type=Path, help="write a picture of the samples here")
    arguments = parser.parse_args()
    comfy_host.prepare(arguments.comfyui)

    checkpoint = load(arguments.checkpoint)
    grids = []
    for prefix in arguments.prefix or ["", settings.STYLE]:
        pictures, asked = draw(checkpoint, prefix, arguments.count)
        result = score(pictures, asked)
        print(f"{digits.caption(7, prefix)!r}: right digit {result.right:.1%}, in the style {result.styled:.1%}")
        grids.append(np.asarray(grid(pictures, asked)))
    if arguments.grid:
        Image.fromarray(np.concatenate(grids, axis=1)).save(arguments.grid)


if __name__ == "__main__":
    main()
