"""Trains the judge of the claims on pictures of all icon sets, half of them as the base's autoencoder decodes them.

    COMFYUI_PATH=… <ComfyUI's Python> -m benchmarks.claims_.train_judge [--work FOLDER] [--steps N] [--threads N]

Writes judge.safetensors beside this file and says how often it is right on names that are held out: of every set with
each of the others, since a name of one set is in most of them.
"""

import argparse
from pathlib import Path

import torch

from demo import comfy_host
from demo.train_base import Report

SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder (default: $COMFYUI_PATH)")
    parser.add_argument("--work", type=Path, default=Path("claims-training"), help="where the icons are kept")
    parser.add_argument("--steps", type=int, help="(default: the judge's own)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    comfy_host.prepare(arguments.comfyui)

    from . import base, icon_sets, judge, render

    icons = arguments.work / "icons"
    autoencoder = base.trained_autoencoder()

    @torch.no_grad()
    def decoded(pictures: torch.Tensor) -> torch.Tensor:
        latents = autoencoder.encode(pictures.permute(0, 3, 1, 2) * 2 - 1)
        return autoencoder.decode(latents).permute(0, 2, 3, 1).add(1).div(2)

    teaching = judge.Teaching(icons, decoded)
    trained = judge.train(teaching, SEED, Report("judge", every=100), arguments.steps or judge.STEPS)
    judge.save(trained)

    verdicts = judge.load()
    for icons_set in icon_sets.ALL:
        chosen, pixels = render.pictures(icons_set, icons)
        pictures = torch.from_numpy(pixels[:500]).float() / 255
        style = verdicts.styles(pictures).argmax(1) == judge.STYLES.index(icons_set.name)
        right = verdicts.is_right(pictures, chosen[:500], chosen)
        print(f"{icons_set.name}: style {style.float().mean():.3f}, name among 100 {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
