"""Trains the demo's base model from nothing: an autoencoder and a small SD1.5 UNet that write digits on demand.

    COMFYUI_PATH=… <ComfyUI's Python> -m demo.train_base

About three quarters of an hour on two idle cores. Interrupted, it goes on where it stopped. Writes
demo/taesd.safetensors and demo/unet.safetensors.

The files in the repository come from these two trainings, the UNet's in two runs: its learning rate had once run down
after 1,300 steps before the schedule was lengthened to 3,500.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from . import comfy_host, digits

SEED = 20240911


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder (default: $COMFYUI_PATH)")
    parser.add_argument("--work", type=Path, default=Path("demo-training"), help="folder for what a rerun goes on from")
    arguments = parser.parse_args()
    comfy_host.prepare(arguments.comfyui)

    # These import ComfyUI's modules, so only now.
    from safetensors.torch import load_file

    from . import autoencoder, base_unet, checkpoint

    base = digits.load_split().base
    autoencoder_file = arguments.work / "taesd.safetensors"
    if not autoencoder_file.exists():
        checkpoint.write(autoencoder.train(base, SEED, Report("autoencoder")), autoencoder_file)

    untrained = arguments.work / "untrained.safetensors"
    checkpoint.assemble(untrained, base_unet.tensors(base_unet.new().state_dict()), load_file(autoencoder_file))
    examples = base_unet.examples_from(untrained, base)
    unet = base_unet.train(examples, SEED, arguments.work / "unet.pt", Report("UNet"))

    checkpoint.write(load_file(autoencoder_file), checkpoint.AUTOENCODER_FILE)
    checkpoint.write(unet, checkpoint.UNET_FILE)


class Report:
    """Prints the mean loss and the pace now and then."""

    def __init__(self, what: str, every: int = 25):
        self._what, self._every = what, every
        self._losses, self._since = [], time.perf_counter()

    def __call__(self, step: int, steps: int, loss: float) -> None:
        self._losses.append(loss)
        if step % self._every and step < steps:
            return
        now = time.perf_counter()
        pace, mean = (now - self._since) / len(self._losses), sum(self._losses) / len(self._losses)
        print(f"{self._what} {step}/{steps}  loss {mean:.4f}  {pace:.2f} s/step", flush=True)
        self._losses, self._since = [], now


if __name__ == "__main__":
    main()
