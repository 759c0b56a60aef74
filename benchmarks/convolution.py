"""What it is worth on the CPU to use a convolution's weight in parts: forward and gradient of the input, in ms.

    python dev.py bench convolution [--json FILE]

3×3 convolutions of SD1.5 at latents of 32×32, fp32, batch 1; the best of a few calls each. "whole" is what torch's own
layers do; "parts" what ours do (WEIGHT_COPY_BYTES in sara_core/backward/ops.py).
"""

import argparse
import platform
import sys

import torch

from benchmarks.lib.report import add_json_option, check_json_option, machine, machine_text, save, text_table
from benchmarks.lib.timing import best_milliseconds
from sara_core.backward import ops as layers
from sara_core.backward.ops import ConvOp

# Output channels, input channels, side.
SHAPES = (
    (320, 320, 32), (640, 640, 16), (640, 1920, 16), (1280, 1280, 16), (1280, 1280, 8), (1280, 2560, 8),
    (1280, 1280, 4), (1280, 2560, 4),
)  # fmt: skip
WAYS = {"whole": 1 << 40, "parts": layers.WEIGHT_COPY_BYTES}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py bench convolution", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_json_option(parser)
    arguments = parser.parse_args()
    check_json_option(parser, arguments.json)
    torch.manual_seed(0)
    measurements = [measured(*shape) for shape in SHAPES]
    header = ["layer", "weight MiB", "forward", "in parts", "ratio", "gradient", "in parts", "ratio"]
    print("\n".join(text_table(header, [row(one) for one in measurements])))
    versions = {"torch": torch.__version__, "Python": platform.python_version(), "threads": torch.get_num_threads()}
    print(machine_text(machine(), versions))
    report = {"machine": machine(), "versions": versions, "measurements": measurements}
    save(report, arguments.json, lambda figure: draw(figure, measurements))
    return 0


def measured(out_channels: int, in_channels: int, side: int) -> dict:
    """Milliseconds by way, forward and backward, with the layer's shape."""
    op = ConvOp((3, 3), (1, 1), (1, 1), (1, 1), 1)
    weight, x = torch.randn(out_channels, in_channels, 3, 3), torch.randn(1, in_channels, side, side)
    gradient = torch.randn(1, out_channels, side, side)
    found = {"layer": f"{in_channels}→{out_channels}, {side}×{side}", "weight": weight.nbytes / 2**20}
    usual = layers.WEIGHT_COPY_BYTES
    try:
        for way, layers.WEIGHT_COPY_BYTES in WAYS.items():
            found[f"forward {way}"] = best_milliseconds(lambda: op.forward(x, weight, None))
            found[f"gradient {way}"] = best_milliseconds(lambda: op.input_gradient(gradient, weight, x.shape))
    finally:
        layers.WEIGHT_COPY_BYTES = usual
    return found


def row(one: dict) -> list[str]:
    cells = [one["layer"], f"{one['weight']:.0f}"]
    for what in ("forward", "gradient"):
        whole, parts = (one[f"{what} {way}"] for way in WAYS)
        cells += [f"{whole:.1f}", f"{parts:.1f}", f"{parts / whole:.2f}"]
    return cells


def draw(figure, measurements: list[dict]) -> None:
    for number, what in enumerate(("forward", "gradient"), 1):
        axes = figure.add_subplot(1, 2, number)
        for way in WAYS:
            axes.plot([one["weight"] for one in measurements], [one[f"{what} {way}"] for one in measurements], "o",
                      label=way)  # fmt: skip
        axes.set(title=what, xlabel="weight, MiB", ylabel="ms", ylim=(0, None))
        axes.legend()


if __name__ == "__main__":
    sys.exit(main())
