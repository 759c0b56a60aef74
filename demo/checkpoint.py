"""Puts the demo's checkpoint together: one file that CheckpointLoaderSimple loads as SD1.5."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Mapping

import torch
from safetensors.torch import load_file, save_file

from . import text_encoder

HERE = Path(__file__).resolve().parent
UNET_FILE = HERE / "unet.safetensors"
AUTOENCODER_FILE = HERE / "taesd.safetensors"
UNET_PREFIX = "model.diffusion_model."
AUTOENCODER_PREFIX = "first_stage_model."


def assemble(path: str | Path, unet: Mapping[str, torch.Tensor] | None = None,
             autoencoder: Mapping[str, torch.Tensor] | None = None) -> Path:
    """Write the checkpoint to `path` and return it; the same bytes every time and everywhere.

    unet, autoencoder: tensors under their names in a checkpoint; by default the trained ones beside this file.
    """
    path = Path(path)
    tensors = dict(load_file(UNET_FILE) if unet is None else unet)
    tensors |= load_file(AUTOENCODER_FILE) if autoencoder is None else autoencoder
    tensors |= text_encoder.weights()
    write(tensors, path)
    return path


def write(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Save tensors as safetensors; an interrupted write, or another process's, leaves no half file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata={"format": "pt"})
    os.replace(partial, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="where to write it, e.g. in ComfyUI's models/checkpoints")
    print(assemble(parser.parse_args().path))
