"""Training steps in plain PyTorch: SaRA beside the floor, PEFT's methods and full fine-tuning, on one model."""

import json
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator

from benchmarks.lib.models import SHAPES
from benchmarks.lib.process import OutOfMemory, measured
from benchmarks.lib.report import Spread, add_json_option, check_json_option, text_table
from devtools.comfyui.install import HostError
from devtools.progress import Progress

FLOOR, OURS, ATTENTION, EVERYWHERE = "floor", "SaRA", "LoRA attention", "LoRA everywhere"
# Trained elements at 0.6 % and at 5.8 % of the model: normal weights below 2e-4 and below 2e-3.
ELEMENTS = {
    "sd15": (5_000_000, 50_000_000),
    "sd15-part": (600_000, 6_000_000),
    "sdxl": (15_000_000, 150_000_000),
    "flux-pair": (3_000_000, 30_000_000),
    "small": (30_000, 300_000),
}
BYTES_PER_ELEMENT, ALLOWANCE = 28, 64
MIB = 1 << 20


def add_options(parser: ArgumentParser, steps: int) -> None:
    """What every benchmark of training steps can be told."""
    parser.add_argument("--rounds", type=int, default=1, help="runs of each (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=steps, help="of each run, the first not timed (default: %(default)s)"
    )
    parser.add_argument("--model", choices=SHAPES, default="sd15", help="in plain PyTorch (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="in plain PyTorch")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--latent", type=int, default=32, help="side of the (smallest) latents (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="small models: only to see that it works")
    add_json_option(parser)


def parsed(parser: ArgumentParser) -> Namespace:
    """The arguments, checked."""
    arguments = parser.parse_args()
    if arguments.steps < 2 or arguments.rounds < 1:
        parser.error("at least 2 steps and 1 round are needed")
    check_json_option(parser, arguments.json)
    if arguments.small:
        arguments.model = "small"
    return arguments


def plan(arguments: Namespace) -> list[dict]:
    """The specifications of one round, for _step_run."""
    common = {name: getattr(arguments, name) for name in ("model", "latent", "batch", "steps", "device", "dtype")}
    few, many = ELEMENTS[arguments.model]
    specs = []
    for checkpointing in {None: (True, False), "on": (True,), "off": (False,)}[arguments.checkpointing]:
        for method in arguments.methods:
            for elements in (few, many) if method == OURS else (few,):
                specs.append({**common, "method": method, "elements": elements, "checkpointing": checkpointing})
    return specs


def run(specs: list[dict], rounds: int, progress: Progress) -> list[dict]:
    """Every specification in a process of its own, in turns, so that a change of the machine's load meets all. One that
    the memory does not suffice for is left out."""
    measurements, impossible = [], []
    for number in range(rounds):
        for spec in specs:
            if spec in impossible:
                continue
            progress.say(f"round {number + 1} of {rounds}: {label(spec)}")
            try:
                result = measured("benchmarks.lib.step_run", [json.dumps(spec)])
            except OutOfMemory:
                impossible.append(spec)
                progress.say("    left out: the memory does not suffice")
                continue
            measurements.append({**result, "round": number})
            progress.say(f"    growth {result['growth']:.0f} MiB, step {statistics.median(result['steps']):.2f} s")
    if not measurements:
        raise HostError("There is not enough memory for any of the methods.")
    return measurements


def label(row: dict) -> str:
    name = row["method"]
    if name == OURS:
        name += f" {row['elements'] / 1e6:g} M"
    return name + (", checkpointing" if row["checkpointing"] else "")


def ratios(measurements: list[dict]) -> list[dict]:
    """Ours beside the others, per round against the same round: name, spread, and the limit that the project promises
    (None: no promise for this comparison, or none for this model and device)."""
    promised = PROMISES.get((measurements[0]["model"], measurements[0]["device"]), {})
    found = []
    elements = sorted({m["elements"] for m in measurements if m["method"] == OURS})
    for checkpointing in (True, False):
        for share, count in zip(("few", "many"), elements):
            ours = {"method": OURS, "elements": count, "checkpointing": checkpointing}
            for name, (other, ratio) in COMPARISONS.items():
                figures = list(_per_round(measurements, ours, other, ratio))
                if figures:
                    limit = promised.get((share, checkpointing, name))
                    found.append({"name": f"{label(ours)}: {name}", "spread": Spread.of(figures), "limit": limit})
    return found


def _per_round(measurements: list[dict], ours: dict, other: str | None, ratio: Callable) -> Iterator[float]:
    for number in sorted({m["round"] for m in measurements}):
        runs = {label(m): m for m in measurements if m["round"] == number}
        theirs = label({**ours, "method": other}) if other else label(ours)
        if label(ours) in runs and theirs in runs:
            yield ratio(runs[label(ours)], runs[theirs])


def _steps(ours, theirs) -> float:
    return statistics.median(ours["steps"]) / statistics.median(theirs["steps"])


def _peaks(ours, theirs) -> float:
    return ours["peak"] / theirs["peak"]


def _over_floor(ours, floor) -> float:
    return ours["peak"] / (floor["peak"] + ours["trained_elements"] * BYTES_PER_ELEMENT / MIB + ALLOWANCE)


def _over_lora(ours, lora) -> float:
    further = ours["trained_elements"] - lora["trained_elements"]
    return ours["peak"] / (lora["peak"] + further * BYTES_PER_ELEMENT / MIB)


def _update_share(ours, _) -> float:
    return ours["update_share"]


# Name → what ours is compared with (None: itself), and how.
COMPARISONS = {
    "step / floor": (FLOOR, _steps),
    "step / LoRA attention": (ATTENTION, _steps),
    "step / LoRA everywhere": (EVERYWHERE, _steps),
    "peak / LoRA attention": (ATTENTION, _peaks),
    "peak / LoRA everywhere": (EVERYWHERE, _peaks),
    "peak / (floor + 28 B an element + 64 MiB)": (FLOOR, _over_floor),
    "peak / (LoRA attention + 28 B a further element)": (ATTENTION, _over_lora),
    "optimizer and writing back, share of a step": (None, _update_share),
}
_BOTH = (True, False)
# (model, device) → (few or many elements, with checkpointing or without, name of a comparison) → limit.
PROMISES = {
    ("sd15", "cpu"): {
        **{("few", how, "step / floor"): 1.20 for how in _BOTH},
        **{("many", how, "step / floor"): 1.45 for how in _BOTH},
        **{("few", how, "step / LoRA attention"): 1.00 for how in _BOTH},
        **{("few", how, "step / LoRA everywhere"): 0.80 for how in _BOTH},
        **{("few", how, "peak / LoRA everywhere"): 1.00 for how in _BOTH},
        **{(share, True, "peak / (floor + 28 B an element + 64 MiB)"): 1.00 for share in ("few", "many")},
        ("few", False, "peak / LoRA attention"): 1.00,
        ("many", False, "peak / (LoRA attention + 28 B a further element)"): 1.00,
        **{("few", how, "optimizer and writing back, share of a step"): 0.03 for how in _BOTH},
        **{("many", how, "optimizer and writing back, share of a step"): 0.08 for how in _BOTH},
    },
    **{
        (model, "cuda"): {
            **{("few", how, f"{what} / LoRA attention"): 1.00 for how in _BOTH for what in ("step", "peak")},
            **{("many", how, "peak / LoRA everywhere"): 1.00 for how in _BOTH},
        }
        for model in ("sd15", "sdxl")
    },
}


def summarise(measurements: list[dict]) -> list[dict]:
    """One row per method: medians over the rounds, steps over all of them."""
    rows = []
    for name in dict.fromkeys(label(m) for m in measurements):
        runs = [m for m in measurements if label(m) == name]
        row = {"name": name, "steps": Spread.of(step for run in runs for step in run["steps"])}
        for field in ("trained_elements", "loaded", "peak", "growth", "update_share", "preparing", "first_step"):
            row[field] = statistics.median(run[field] for run in runs)
        shares = [run["weight_gradient_share"] for run in runs if run["weight_gradient_share"]]
        row["weight_gradient_share"] = statistics.median(shares) if shares else None
        rows.append(row)
    return rows


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def text(report: dict) -> list[str]:
    rows = [
        [row["name"], f"{row['trained_elements'] / 1e6:.2f}", Spread(*row["steps"]).text(2), f"{row['growth']:.0f}",
         f"{row['peak']:.0f}", percent(row["weight_gradient_share"]), percent(row["update_share"]),
         f"{row['preparing']:.1f}", f"{row['first_step']:.1f}"]
        for row in report["summary"]
    ]  # fmt: skip
    header = ["method", "trained M", "step s", "growth MiB", "peak MiB", "gradient", "update", "prepare s", "first s"]
    first = report["measurements"][0]
    return [
        *text_table(header, rows), "",
        f"{first['model']}: {first['parameters'] / 1e6:.1f} M random parameters, {first['dtype']}, latents of "
        f"{first['latent']}×{first['latent']}, batch {first['batch']}, {first['accelerator'] or first['device']}; "
        f"loaded {first['loaded']:.0f} MiB.",
        "growth: peak since the model was loaded, less the loaded model. gradient: share of a step that ours takes for "
        "the gradients of its elements; update: that of the optimizer with writing the values back. A ratio compares "
        "within one round; in brackets, the lowest and highest.",
    ]  # fmt: skip

