"""Memory and speed of training: SaRA beside LoRA, SHiRA, Super-Tuning and full fine-tuning.

    python dev.py bench train [--part pytorch|comfyui] [--rounds N] [--steps N] [--json FILE]
    python dev.py bench train --part pytorch --device cuda --dtype bfloat16 --latent 128 --batch 8 --model sdxl

Two parts, each measurement in a process of its own, all in turns, with and without gradient checkpointing.
In plain PyTorch: a diffusers model of real shape with random weights. The floor is forward and backward to the input
with nothing trained; LoRA, SHiRA and Super-Tuning are PEFT's; ours trains 0.6 % and 5.8 % of the weights.
In ComfyUI, on the CPU: SaRA Train and both modes of core's Train LoRA (rank 8) on a UNet of SD1.5's size, fp32, one
32×32 latent a step; its file is kept in the cache.
Growth is the peak since the model was loaded, less the loaded model. A step's time is the median without the first.
"""

import argparse
import sys
from argparse import Namespace

from benchmarks.lib.methods import METHODS
from benchmarks.lib.random_unet import unet_file
from benchmarks.lib.report import Spread, busy_text, machine, machine_text, save, text_table
from benchmarks.train_ import comfyui
from benchmarks.train_ import pytorch
from devtools.comfyui.install import HostError
from devtools.progress import Progress

PARTS = ("pytorch", "comfyui")


def main() -> int:
    arguments = parsed()
    progress = Progress()
    report = {"machine": machine(), "settings": {k: str(v) for k, v in vars(arguments).items()}}
    try:
        if "pytorch" in arguments.part:
            measurements = pytorch.run(pytorch.plan(arguments), arguments.rounds, progress)
            report["pytorch"] = {
                "ratios": pytorch.ratios(measurements),
                "summary": pytorch.summarise(measurements),
                "measurements": measurements,
            }
        if "comfyui" in arguments.part:
            report["comfyui"] = comfyui_report(arguments, progress)
    except HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(text(report)))
    save(report, arguments.json, lambda figure: draw(figure, report))
    return 0


def parsed() -> Namespace:
    parser = argparse.ArgumentParser(
        prog="dev.py bench train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="one part only (default: both)")
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS), help="in plain PyTorch")
    parser.add_argument("--checkpointing", choices=("on", "off"), help="in plain PyTorch (default: both)")
    parser.add_argument("--batch", type=int, default=1, help="(default: %(default)s)")
    pytorch.add_options(parser, steps=4)
    arguments = pytorch.parsed(parser)
    arguments.part = arguments.part or PARTS
    return arguments


def comfyui_report(arguments: Namespace, progress: Progress) -> dict:
    layout = "small" if arguments.small else "sd15"
    trained = comfyui.TRAINED[layout]
    measurements = comfyui.run(
        unet_file(layout, progress), arguments.steps, arguments.rounds, trained, progress
    )
    return {
        "ratios": comfyui.ratios(measurements),
        "summary": comfyui.summarise(measurements),
        "measurements": measurements,
    }


def text(report: dict) -> list[str]:
    """Both parts: ratios first, then the figures they are made of, then where they were measured."""
    lines = []
    for part, described in (("pytorch", pytorch.text), ("comfyui", comfyui.text)):
        if part in report:
            lines += ["", *ratio_lines(part, report[part]["ratios"]), "", *described(report[part])]
    measurements = [m for part in PARTS if part in report for m in report[part]["measurements"]]
    versions = {name: version for m in measurements for name, version in m["versions"].items()}
    return [*lines, machine_text(report["machine"], versions), *busy_text(measurements)]


def ratio_lines(part: str, ratios: list[dict]) -> list[str]:
    rows = []
    for one in ratios:
        spread, limit = Spread(*one["spread"]), one["limit"]
        promise = ["", ""] if limit is None else [f"≤ {limit:.2f}", "yes" if spread.median <= limit else "NO"]
        rows.append([one["name"], spread.text(3), *promise])
    return text_table([{"pytorch": "plain PyTorch", "comfyui": "ComfyUI: SaRA Train / Train LoRA"}[part],
                       "ratio", "target", "met"], rows)  # fmt: skip


def draw(figure, report: dict) -> None:
    parts = [part for part in PARTS if part in report]
    for number, part in enumerate(parts, 1):
        axes = figure.add_subplot(1, len(parts), number)
        for row in report[part]["summary"]:
            point = row["steps"][0], row["growth"]
            axes.scatter(
                *point, color="tab:orange" if row["name"].startswith("SaRA") else "tab:blue",
                marker="o" if "checkpointing" in row["name"] else "s",
            )  # fmt: skip
            name = row["name"].removesuffix(", checkpointing")
            axes.annotate(name, point, fontsize=7, xytext=(4, 3), textcoords="offset points")
        axes.set(
            title={"pytorch": "plain PyTorch", "comfyui": "ComfyUI"}[part] + " (round: gradient checkpointing)",
            xlabel="step, s", ylabel="growth over the loaded model, MiB", xscale="log", yscale="log",
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
