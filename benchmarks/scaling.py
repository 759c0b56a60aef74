"""How a training step grows: with the number of trained elements, with the pictures' size, and with the batch.

    python dev.py bench scaling [--model sd15] [--device cpu|cuda] [--dtype D] [--rounds N] [--json FILE]

In plain PyTorch, with gradient checkpointing, each measurement in a process of its own, all in turns. Beside ours are
the floor (forward and backward to the input, nothing trained) and PEFT's LoRA of rank 25 on the attention layers.
Growth is the peak since the model was loaded, less the loaded model. A step's time is the median without the first.
"""

import argparse
import statistics
import sys
from argparse import Namespace

from benchmarks.lib.report import Spread, busy_text, machine, machine_text, save, text_table
from benchmarks.train_ import pytorch
from benchmarks.train_.pytorch import ATTENTION, ELEMENTS, FLOOR, MIB, OURS, percent
from devtools.comfyui.install import HostError
from devtools.progress import Progress

METHODS = (FLOOR, ATTENTION, OURS)
COLOURS = {FLOOR: "tab:gray", ATTENTION: "tab:blue", OURS: "tab:orange"}
# Of the lower of a model's two usual numbers of elements.
MULTIPLES = (0.1, 0.2, 0.4, 1, 2, 4, 10)
# Of the smallest picture, one side; and pictures in a batch.
SIDES, BATCHES = (1, 1.5, 2), (1, 2, 4)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py bench scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    pytorch.add_options(parser, steps=3)
    arguments = pytorch.parsed(parser)
    sweeps = planned(arguments)
    specs = [spec for sweep in sweeps.values() for spec in sweep]
    unique = [spec for number, spec in enumerate(specs) if spec not in specs[:number]]
    try:
        measurements = pytorch.run(unique, arguments.rounds, Progress())
    except HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report = {
        "machine": machine(),
        "settings": {name: str(value) for name, value in vars(arguments).items()},
        "sweeps": {name: rows(sweep, measurements) for name, sweep in sweeps.items()},
        "measurements": measurements,
    }
    print("\n".join(text(report)))
    save(report, arguments.json, lambda figure: draw(figure, report["sweeps"]))
    return 0


def planned(arguments: Namespace) -> dict[str, list[dict]]:
    """Name of a sweep → its specifications for _step_run; what is not swept has its smallest or usual value."""
    usual = ELEMENTS[arguments.model][0]

    def spec(method: str, elements: int = usual, latent: int = arguments.latent, batch: int = 1) -> dict:
        return {
            "model": arguments.model, "latent": latent, "batch": batch, "steps": arguments.steps,
            "device": arguments.device, "dtype": arguments.dtype, "method": method, "elements": elements,
            "checkpointing": True,
        }  # fmt: skip

    return {
        "elements": [spec(FLOOR), *(spec(OURS, elements=round(multiple * usual)) for multiple in MULTIPLES)],
        "latent": [spec(method, latent=round(side * arguments.latent)) for side in SIDES for method in METHODS],
        "batch": [spec(method, batch=batch) for batch in BATCHES for method in METHODS],
    }


def rows(sweep: list[dict], measurements: list[dict]) -> list[dict]:
    """One per specification that was measured: medians over the rounds, and beside the floor of the same inputs."""
    found = []
    for spec in sweep:
        runs = [m for m in measurements if _what(m) == _what(spec)]
        floors = {m["round"]: m for m in measurements if m["method"] == FLOOR and _inputs(m) == _inputs(spec)}
        pairs = [(run, floors[run["round"]]) for run in runs if run["round"] in floors]
        if pairs:
            found.append({
                "method": spec["method"], "elements": runs[0]["trained_elements"], "latent": spec["latent"],
                "batch": spec["batch"],
                "step": statistics.median(_step(run) for run in runs),
                "step_over_floor": Spread.of(_step(run) / _step(floor) for run, floor in pairs),
                "weight_gradient_share": runs[0]["weight_gradient_share"] or None,
                "update_share": statistics.median(run["update_share"] for run in runs),
                "growth": statistics.median(run["growth"] for run in runs),
                "growth_over_floor": statistics.median(run["growth"] - floor["growth"] for run, floor in pairs),
            })  # fmt: skip
    return found


def _what(spec: dict) -> tuple:
    return spec["method"], spec["elements"], _inputs(spec)


def _inputs(spec: dict) -> tuple:
    return spec["latent"], spec["batch"]


def _step(run: dict) -> float:
    return statistics.median(run["steps"])


def text(report: dict) -> list[str]:
    lines = []
    header = [
        "method", "trained M", "step / floor", "step s", "gradient", "update", "growth MiB", "over floor",
        "B an element",
    ]  # fmt: skip
    for name, sweep in report["sweeps"].items():
        cells = []
        for row in sweep:
            per_element = f"{row['growth_over_floor'] * MIB / row['elements']:.1f}" if row["elements"] else ""
            cells.append([
                f"{row['latent']}×{row['latent']}, batch {row['batch']}, {row['method']}",
                f"{row['elements'] / 1e6:.2f}", Spread(*row["step_over_floor"]).text(3), f"{row['step']:.2f}",
                percent(row["weight_gradient_share"]), percent(row["update_share"]),
                f"{row['growth']:.0f}", f"{row['growth_over_floor']:.0f}", per_element,
            ])  # fmt: skip
        lines += ["", f"by {name}", *text_table(header, cells)]
    first = report["measurements"][0]
    return [
        *lines, "",
        f"{first['model']}: {first['parameters'] / 1e6:.1f} M random parameters, {first['dtype']}, gradient "
        f"checkpointing, {first['accelerator'] or first['device']}; loaded {first['loaded']:.0f} MiB.",
        machine_text(report["machine"], first["versions"]), *busy_text(report["measurements"]),
    ]  # fmt: skip


def draw(figure, sweeps: dict[str, list[dict]]) -> None:
    for number, (name, sweep) in enumerate(sweeps.items(), 1):
        steps, growth = figure.add_subplot(2, 3, number), figure.add_subplot(2, 3, number + 3)
        for method in METHODS:
            points = [row for row in sweep if row["method"] == method]
            for axes, field in ((steps, "step"), (growth, "growth")):
                style = {"label": method, "color": COLOURS[method]}
                if name == "elements" and method == FLOOR:
                    axes.axhline(points[0][field], **style)
                elif points:
                    axes.plot([row[name] for row in points], [row[field] for row in points], "o-", **style)
        steps.set(title=f"by {name}", ylabel="step, s", ylim=(0, None))
        growth.set(xlabel=name, ylabel="growth, MiB", ylim=(0, None))
        if name == "elements":
            for axes in (steps, growth):
                axes.set_xscale("log")
        steps.legend(fontsize=7)


if __name__ == "__main__":
    sys.exit(main())
