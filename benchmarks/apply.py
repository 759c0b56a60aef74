"""Putting a delta on a model in ComfyUI, exchanging it and taking it off, beside core's LoRA of rank 16.

    python dev.py bench apply [--device cuda] [--dtype float16] [--rounds N] [--json FILE]

An SD1.5 UNet with random weights; deltas of 50 M and 5 M elements of all its Linear layers and convolutions, one of
50 M of the Linear layers only, and a LoRA on these, each from a file through its loader node, each in its own process,
in turns. Patching is what ComfyUI does between the node and a model that is ready. It copies every weight that a LoRA
patches, and has deltas written in place; adding is the part of it in its own calculate_weight, which a delta that
is written in place has none of. The UNet's file is kept in the cache.
"""

import argparse
import json
import statistics
import sys
import tempfile
from argparse import Namespace
from datetime import datetime, timezone

from benchmarks.apply_.files import VERSIONS, delta_name, lora_name
from benchmarks.lib.process import measured, run_module
from benchmarks.lib.random_unet import unet_file
from benchmarks.lib.report import (
    Spread, add_json_option, busy_text, check_json_option, machine, machine_text, save, text_table,
)  # fmt: skip
from devtools.comfyui.install import HostError
from devtools.progress import Progress

# Elements of a delta, and the weights that have them; see _apply_files.
DELTAS = {
    "sd15": ((50_000_000, "all"), (50_000_000, "linear"), (5_000_000, "all")),
    "small": ((920_000, "all"), (920_000, "linear"), (92_000, "all")),
}
BYTES_PER_ELEMENT = 8  # an int32 position and a float32 value
LORA = "LoRA r16"
# Figure → what it is called. All are seconds, of which a ratio is ours by the LoRA's.
TIMES = {
    "patch": "patch", "adding": "of it adding", "node and patch": "node and patch", "switch_strength": "other strength",
    "switch_file": "other file", "switch_back": "file of before", "unpatch": "take off",
}  # fmt: skip
# Of a delta that changes up to a hundredth of the model, and of a denser one.
LIMITS = {"patch": (0.35, 0.8)} | dict.fromkeys(("switch_strength", "switch_file", "switch_back"), (0.15, 0.5))
SPARSE = 0.01
BYTES_WHILE_APPLIED = 6.0
MEMORY = {
    "kept": "kept MiB", "applied": "applied MiB", "patch_growth": "extra MiB", "host_copies": "core's MiB",
}  # fmt: skip


def main() -> int:
    arguments = parsed()
    progress = Progress()
    try:
        measurements = run(arguments, progress)
    except HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(),
        "settings": {"device": arguments.device, "dtype": arguments.dtype, "rounds": arguments.rounds},
        "ratios": ratios(measurements),
        "summary": summarise(measurements),
        "measurements": measurements,
    }
    print("\n".join(text(report)))
    save(report, arguments.json, lambda figure: draw(figure, report))
    return 0


def parsed() -> Namespace:
    parser = argparse.ArgumentParser(
        prog="dev.py bench apply", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of the weights")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="a UNet of 16 M parameters: only to see that it works")
    add_json_option(parser)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("at least 1 round is needed")
    check_json_option(parser, arguments.json)
    return arguments


def run(arguments: Namespace, progress: Progress) -> list[dict]:
    """All cases in turns, so that a change of the machine's load meets all."""
    layout = "small" if arguments.small else "sd15"
    unet, measurements = unet_file(layout, progress), []
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-bench-") as base:
        progress.say("writing random deltas and LoRAs")
        wanted = [f"{elements}:{where}" for elements, where in DELTAS[layout]]
        run_module("benchmarks.apply_.files", [str(unet), base, *wanted])
        places = {"unet": str(unet), "base": base}
        common = {**places, "device": arguments.device, "dtype": arguments.dtype}
        for number in range(arguments.rounds):
            for case in cases(DELTAS[layout]):
                progress.say(f"round {number + 1} of {arguments.rounds}: {case['case']}")
                result = measured("benchmarks.apply_.run", [json.dumps({**common, **case})])
                result["node and patch"] = result["node"] + result["patch"]
                # What is published says nothing of where this machine has its files.
                measurements.append({"round": number} | {name: result[name] for name in result if name not in places})
                progress.say(f"    node {result['node']:.2f} s, patch {result['patch']:.2f} s")
    return measurements


def cases(wanted: tuple[tuple[int, str], ...]) -> list[dict]:
    """What is compared, as _apply_run must know it."""
    deltas = [
        {
            "case": f"delta {elements / 1e6:g} M, {where}", "kind": "delta", "elements": elements,
            "files": [delta_name(elements, where, version) for version in VERSIONS],
        }
        for elements, where in wanted
    ]  # fmt: skip
    return [*deltas, {"case": LORA, "kind": "lora", "files": [lora_name(version) for version in VERSIONS]}]


def by_case(measurements: list[dict]) -> dict[str, list[dict]]:
    """Case → its measurements, round by round."""
    runs: dict[str, list[dict]] = {}
    for measurement in measurements:
        runs.setdefault(measurement["case"], []).append(measurement)
    return runs


def ratios(measurements: list[dict]) -> list[dict]:
    """Our seconds by the LoRA's of the same round, memory by the delta's own: name, spread, limit (None: none)."""
    runs = by_case(measurements)
    loras, found = runs.pop(LORA), []
    for case, ours in runs.items():
        for figure, name in measured_times(loras[0]).items():
            spread = Spread.of(one[figure] / lora[figure] for one, lora in zip(ours, loras))
            limit = LIMITS[figure][ours[0]["elements"] > SPARSE * ours[0]["parameters"]] if figure in LIMITS else None
            found.append({"name": f"{case}: {name} / {LORA}", "spread": spread, "limit": limit})
        extra = Spread.of(one["patch_growth"] * 2**20 / (one["elements"] * BYTES_PER_ELEMENT) for one in ours)
        found.append({"name": f"{case}: memory for patching / delta", "spread": extra, "limit": 1.0})
        applied = Spread.of(one["applied"] * 2**20 / one["elements"] for one in ours)
        found.append({"name": f"{case}: bytes an element while on", "spread": applied, "limit": BYTES_WHILE_APPLIED})
    return found


def measured_times(of: dict) -> dict[str, str]:
    """TIMES without what is not measured on this device."""
    return {figure: name for figure, name in TIMES.items() if of[figure] is not None}


def summarise(measurements: list[dict]) -> list[dict]:
    """One row per case: times in seconds with their spread, medians of memory in MiB."""
    rows = []
    for case, runs in by_case(measurements).items():
        row = {"case": case, "reads": sum(run["model_file_reads"] for run in runs)}
        for figure in ("node", *measured_times(runs[0])):
            row[figure] = Spread.of(run[figure] for run in runs)
        for figure in MEMORY:
            row[figure] = statistics.median(run[figure] for run in runs)
        rows.append(row)
    return rows


def text(report: dict) -> list[str]:
    """Ratios first, then the figures they are made of, then where they were measured."""
    lines = []
    for one in report["ratios"]:
        spread, limit = one["spread"], one["limit"]
        promise = ["", ""] if limit is None else [f"≤ {limit:.2f}", "yes" if spread.median <= limit else "NO"]
        lines.append([one["name"], spread.text(2), *promise])
    first, measurements = report["measurements"][0], report["measurements"]
    times = {"node": "node", **measured_times(first)}
    header = ["seconds, MiB", *times.values(), *MEMORY.values(), "reads"]
    rows = []
    for row in report["summary"]:
        cells = [*(row[figure].text(2) for figure in times), *(f"{row[figure]:.0f}" for figure in MEMORY)]
        rows.append([row["case"], *cells, str(row["reads"])])
    about = {**report["machine"], "processor": first["accelerator"] or report["machine"]["processor"]}
    return [
        "",
        *text_table(["", "ratio", "target", "met"], lines),
        "",
        *text_table(header, rows),
        "",
        "other strength, other file: exchanging it, with the node.",
        "kept: by the node. applied: beside that, as long as it is on.",
        "extra: at most while patching, beside what is kept and core's copies of the weights it patches.",
        "reads: of the model's file, after it was loaded once.",
        f"UNet of {first['parameters'] / 1e6:.1f} M parameters, {first['dtype']}, on {first['device']}.",
        machine_text(about, first["versions"]),
        *busy_text(measurements),
    ]


def draw(figure, report: dict) -> None:
    times = ("node", "patch", "switch_strength", "switch_file", "unpatch")
    axes = figure.add_subplot()
    width = 0.8 / len(report["summary"])
    for number, row in enumerate(report["summary"]):
        middle, low, high = zip(*(row[time] for time in times))
        errors = [[a - b for a, b in zip(middle, low)], [b - a for a, b in zip(middle, high)]]
        places = [place + number * width for place in range(len(times))]
        axes.bar(places, middle, width, yerr=errors, label=row["case"])
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(times))], [TIMES.get(time, time) for time in times])
    axes.set(ylabel="seconds", title="Putting it on a model of SD1.5's size, and what follows")
    axes.legend()


if __name__ == "__main__":
    sys.exit(main())
