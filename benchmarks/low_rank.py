"""What the low-rank loss costs: each kind of matrix of Stable Diffusion 1.5, and a training step on average.

    python dev.py bench low_rank [--step SECONDS] [--json FILE]

Random supports of the two ends of the paper's range, fp32 values, CPU. Each time is the best of three, in
milliseconds, of one matrix's gradient; in brackets in how many steps it is drawn once. The constants of
sara_core.training.low_rank rest on this table.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import torch

from benchmarks.lib.random_unet import LAYOUTS
from benchmarks.lib.timing import best_milliseconds
from devtools.comfyui.install import prepare
from sara_core.backward.support import Support
from sara_core.training.low_rank import BUDGET, drawing_probabilities, nuclear_norm_gradient

DENSITIES = (0.006, 0.058)
# The fastest step of `python dev.py bench train` on two cores: SD1.5 at 32×32 latents, 5 M elements.
STEP_SECONDS = 3.5


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench low_rank", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--step", type=float, default=STEP_SECONDS, help=f"seconds of a training step (default: {STEP_SECONDS})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement to FILE")
    arguments = parser.parse_args()
    shapes = unet_shapes()
    report = {f"{density:.1%}": measured(shapes, density) for density in DENSITIES}
    print("| matrix | how many |", " | ".join(report), "|")
    print("|---|---|" + "---|" * len(report))
    for name, count in Counter(map(kind, shapes)).items():
        cells = (f"{by_kind[name]['ms']:.1f} ({1 / by_kind[name]['probability']:.0f})" for by_kind in report.values())
        print(f"| {name} | {count} |", " | ".join(cells), "|")
    for density, by_kind in report.items():
        every = sum(by_kind[kind(shape)]["ms"] for shape in shapes) / 1000
        step = sum(by_kind[kind(shape)]["ms"] * by_kind[kind(shape)]["probability"] for shape in shapes) / 1000
        print(
            f"{density}: all {len(shapes)} matrices take {every:.1f} s, a step {step:.3f} s on average: "
            f"{step / arguments.step:.1%} of {arguments.step} s ({torch.get_num_threads()} threads)"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


def unet_shapes() -> list[torch.Size]:
    """The weights of Linear and convolution layers."""
    sys.path.insert(0, str(prepare().folder))
    from comfy.cli_args import args

    args.cpu = True
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"):
        weights = UNetModel(**LAYOUTS["sd15"]).state_dict().values()
    return [weight.shape for weight in weights if weight.dim() > 1]


def measured(shapes: list[torch.Size], density: float) -> dict[str, dict[str, float]]:
    """Kind of matrix → milliseconds of its gradient, and the probability that a step draws one."""
    support = random_support(shapes, density)
    probabilities = drawing_probabilities(support, BUDGET["cpu"]).tolist()
    results = {}
    for segment, probability in zip(support, probabilities):
        if (name := kind(segment.shape)) not in results:
            values = torch.randn(len(segment), generator=torch.Generator().manual_seed(0))
            results[name] = {"ms": best_milliseconds(lambda s=segment, v=values: nuclear_norm_gradient(s, v))}
            results[name]["probability"] = probability
    return results


def random_support(shapes: list[torch.Size], density: float) -> Support:
    generator = torch.Generator().manual_seed(0)
    indices = {}
    for number, shape in enumerate(shapes):
        drawn = torch.randint(shape.numel(), (int(shape.numel() * density),), generator=generator)
        indices[str(number)] = drawn.unique().to(torch.int32)
    return Support.from_indices(indices, {str(number): shape for number, shape in enumerate(shapes)})


def kind(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} × {torch.Size(shape[1:]).numel()}"


if __name__ == "__main__":
    sys.exit(main())
