"""Trains the base model of the claims: an autoencoder on icons, and a small SD1.5 UNet on Noto's with their names.

    COMFYUI_PATH=… <ComfyUI's Python> -m benchmarks.claims_.train_base [--work FOLDER] [--steps N] [--threads N]

Hours on two cores. Interrupted, it goes on where it stopped as long as the work folder is there, and otherwise from the
weights beside this file, which it replaces at the end.
"""

import argparse
from pathlib import Path

import torch

from demo import autoencoder, base_unet, checkpoint, comfy_host
from demo.train_base import Report

SEED = 20261128
AUTOENCODER_STEPS = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder (default: $COMFYUI_PATH)")
    parser.add_argument("--work", type=Path, default=Path("claims-training"), help="what a rerun goes on from")
    parser.add_argument("--steps", type=int, default=30000, help="of the UNet (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=4e-4, help="the UNet's learning rate (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    comfy_host.prepare(arguments.comfyui)

    from safetensors.torch import load_file

    from . import base

    icons = arguments.work / "icons"
    if not base.AUTOENCODER_FILE.exists():
        _, pictures = base.base_pictures(icons)
        report = Report("autoencoder", every=100)
        trained = autoencoder.train_on(base.picture_draws(icons), pictures, AUTOENCODER_STEPS, SEED, report)
        checkpoint.write(trained, base.AUTOENCODER_FILE)

    untrained = arguments.work / "untrained.safetensors"
    checkpoint.assemble(untrained, base_unet.tensors(base_unet.new().state_dict()), load_file(base.AUTOENCODER_FILE))
    examples = base.named_pictures(untrained, icons, arguments.work / "examples.pt")
    plan = base_unet.Plan(arguments.steps, batch=32, learning_rate=arguments.rate, warm_up=200)
    unet = base_unet.train(
        examples, SEED, arguments.work / "unet.pt", Report("UNet", every=100), plan, base.trained_so_far()
    )
    checkpoint.write(unet, base.UNET_FILE)


if __name__ == "__main__":
    main()
