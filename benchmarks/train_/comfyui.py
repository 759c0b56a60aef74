"""Training in ComfyUI: SaRA Train beside core's Train LoRA of rank 8, each with a host of its own."""

import statistics
from pathlib import Path

from benchmarks.lib.process import measured
from benchmarks.lib.report import Spread, text_table
from devtools.progress import Progress

METHODS = ("SaRA", "LoRA bypass", "LoRA default")
CHECKPOINTING = (True, False)
TRAINED = {"sd15": 5_000_000, "small": 92_000}
# Name of a ratio → the most it should be, of the runs with checkpointing. A ratio is our figure divided by theirs.
LIMITS = {"growth / better LoRA": 0.18, "step / better LoRA": 0.75}


def run(unet: Path, steps: int, rounds: int, trained: int, progress: Progress) -> list[dict]:
    """Every method with and without checkpointing, in turns, so that a change of the machine's load meets all."""
    measurements = []
    for number in range(rounds):
        for checkpointing in CHECKPOINTING:
            for method in METHODS:
                progress.say(f"round {number + 1} of {rounds}, in ComfyUI: {label(method, checkpointing)}")
                options = [str(unet), method, "on" if checkpointing else "off", str(steps), str(trained)]
                result = measured("benchmarks.train_.run", options)
                measurements.append({**result, "round": number})
                progress.say(f"    growth {result['growth']:.0f} MiB, step {statistics.median(result['steps']):.2f} s")
    return measurements


def label(method: str, checkpointing: bool) -> str:
    return method + (", checkpointing" if checkpointing else "")


def ratios(measurements: list[dict]) -> list[dict]:
    """Ours against each mode, and against what is better in both, per round: name, spread, limit (None: no promise).

    "later" leaves the first step out, in which Train LoRA loads its own copy of the model.
    """
    found = []
    for checkpointing in CHECKPOINTING:
        figures: dict[str, list[float]] = {}
        for number in sorted({m["round"] for m in measurements}):
            runs = {m["method"]: m for m in measurements
                    if (m["round"], m["gradient_checkpointing"]) == (number, checkpointing)}  # fmt: skip
            ours, *loras = (_figures(runs[method]) for method in METHODS)
            for quantity, value in ours.items():
                for method, lora in zip(METHODS[1:], loras):
                    figures.setdefault(f"{quantity} / {method}", []).append(value / lora[quantity])
                better = min(lora[quantity] for lora in loras)
                figures.setdefault(f"{quantity} / better LoRA", []).append(value / better)
        for name, values in figures.items():
            found.append({
                "name": label(name, checkpointing),
                "spread": Spread.of(values),
                "limit": LIMITS.get(name) if checkpointing else None,
            })  # fmt: skip
    return found


def _figures(run: dict) -> dict[str, float]:
    return {
        "growth": run["growth"], "later growth": run["later_growth"], "step": statistics.median(run["steps"]),
    }  # fmt: skip


def summarise(measurements: list[dict]) -> list[dict]:
    """One row per method and checkpointing: medians over the rounds, steps over all of them."""
    rows = []
    for checkpointing in CHECKPOINTING:
        for method in METHODS:
            runs = [m for m in measurements if (m["method"], m["gradient_checkpointing"]) == (method, checkpointing)]
            row = {"name": label(method, checkpointing), "steps": Spread.of(s for run in runs for s in run["steps"])}
            for field in ("trained_elements", "loaded", "peak", "growth", "later_growth", "first_step"):
                row[field] = statistics.median(run[field] for run in runs)
            rows.append(row)
    return rows


def text(report: dict) -> list[str]:
    rows = [
        [row["name"], f"{row['trained_elements'] / 1e6:.2f}", Spread(*row["steps"]).text(2), f"{row['growth']:.0f}",
         f"{row['later_growth']:.0f}", f"{row['peak']:.0f}", f"{row['first_step']:.1f}"]
        for row in report["summary"]
    ]  # fmt: skip
    header = ["method", "trained M", "step s", "growth MiB", "later MiB", "peak MiB", "first s"]
    first = report["measurements"][0]
    return [
        *text_table(header, rows), "",
        f"UNet of {first['parameters'] / 1e6:.1f} M parameters, {first['density_below_2e-4']:.2%} of its weights below "
        "2e-4; fp32, 32×32 latents, batch 1.",
        f"Loaded {first['loaded']:.0f} MiB, at most {first['loading_peak']:.0f} MiB while loading. "
        "first s: from the start to the end of the first step.",
    ]  # fmt: skip
