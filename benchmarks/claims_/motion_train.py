"""Trains the base of the motions: a small model in Wan's layout, on Noto's icons that move left, right and up.

    COMFYUI_PATH=… <ComfyUI's Python> -m benchmarks.claims_.motion_train [--work FOLDER] [--steps N] [--threads N]

Seven minutes on one idle core. Interrupted, it goes on where it stopped as long as the work folder is there; the file
beside this one is replaced at the end. The one in the repository has the averaged weights after 3,000 of 4,000 steps.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from demo import base_unet, comfy_host
from demo.train_base import Report

from . import motion_clips, motion_model

SEED = 20261128
CAPTION_DROPOUT = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("claims-training"), help="what a rerun goes on from")
    parser.add_argument("--steps", type=int, default=4000, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    comfy_host.prepare()

    icons = motion_clips.small_icons(arguments.work / "icons")
    torch.manual_seed(SEED)
    model = motion_model.new()
    plan = base_unet.Plan(arguments.steps, batch=16, learning_rate=1e-3, warm_up=100)
    average = train(model, icons, plan, arguments.work / "motion.pt", Report("motions", every=50))
    write(average, motion_model.FILE)


def train(
    model: torch.nn.Module, icons: dict[str, np.ndarray], plan: base_unet.Plan, state_file: Path, report
) -> dict[str, torch.Tensor]:
    """Train a model, or go on from `state_file`, which is written now and then; its averaged weights, fp32.

    icons: name → uint8 [ICON, ICON, 3]
    report(step, steps, loss) is called after every step.
    """
    def loss_of(step: int) -> torch.Tensor:
        latents, given = _batch(icons, plan.batch, step)
        clips = motion_model.noised(latents, torch.Generator().manual_seed(step))
        return motion_model.loss(model, clips, given)

    return base_unet.averaged(model, loss_of, state_file, report, plan)


def _batch(icons: dict[str, np.ndarray], count: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and contexts that the step alone decides, some captions left out."""
    random, known = np.random.RandomState(step), list(icons)
    wanted = [(known[random.randint(len(known))], motion_clips.KNOWN[random.randint(3)]) for _ in range(count)]
    made = motion_clips.clips(icons, wanted, seed=step)
    given = motion_model.contexts(made.captions)
    given[torch.from_numpy(random.rand(count) < CAPTION_DROPOUT)] = 0
    return motion_model.folded(made.frames), given


def write(weights: dict[str, torch.Tensor], file: Path) -> None:
    """fp16, with what ComfyUI cannot tell from the weights' shapes."""
    from safetensors.torch import save_file

    from .motion_model import TEXT_WIDTH

    config = {"transformer": {"text_dim": TEXT_WIDTH}}
    save_file({name: tensor.half() for name, tensor in weights.items()}, file, {"config": json.dumps(config)})


if __name__ == "__main__":
    main()
