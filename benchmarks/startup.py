"""What the pack adds to the start of ComfyUI: seconds and memory, with it and without it, in turns.

    python dev.py bench startup [--rounds N] [--json FILE]

The published files are copied into the custom_nodes of a base directory, as an installation does it. ComfyUI starts as
its main.py does, up to where it would listen, in a process each: once for the first time (Python compiles the pack
then), and in each round without and with the pack. What the pack costs is measured while ComfyUI loads it, in seconds
of the processor, which other programs disturb least; beside that stands the difference of the two whole starts.
"""

import argparse
import platform
import shutil
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks.lib.memory import OthersWatch
from benchmarks.lib.process import measured
from benchmarks.lib.report import Spread, busy_text, check_json_option, machine, machine_text, reported, text_table
from devtools.comfyui.install import PACK_FOLDER, ROOT, Host, HostError, make_base, prepare
from devtools.packer import tracked_files
from devtools.progress import Progress
from tests.support.published import PUBLISHED

# What is promised: seconds of the processor, and MiB.
LIMITS = {"cpu": 0.3, "memory": 30.0}
FIGURES = {
    "cpu": "loading the pack, processor, s", "wall": "loading the pack, clock, s", "memory": "loading the pack, MiB",
    "whole_cpu": "whole start, with - without, processor, s", "whole_memory": "whole start, with - without, MiB",
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench startup", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="starts without and with it (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("at least 1 round is needed")
    check_json_option(parser, arguments.json)
    report = reported(lambda: measure(prepare(), arguments.rounds, Progress()), text, arguments.json)
    return 0 if report and all(report["as_promised"].values()) else 1


def measure(host: Host, rounds: int, progress: Progress) -> dict:
    """The figures of every round, their spread, and which of LIMITS they keep."""
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-bench-") as folder:
        without, with_pack = Path(folder, "without"), Path(folder, "with")
        for base in (without, with_pack):
            make_base(base)
        install(with_pack / "custom_nodes" / PACK_FOLDER)
        progress.say("the first start")
        first = of_pack(started(host, with_pack))
        measurements = []
        for number in range(rounds):
            progress.say(f"round {number + 1} of {rounds}")
            watch = OthersWatch()
            bare, full = started(host, without), started(host, with_pack)
            differences = {f"whole_{figure}": full[figure] - bare[figure] for figure in ("cpu", "memory")}
            measurements.append({**of_pack(full), **differences, "cores_used_by_others": watch.cores()})
    summary = {figure: Spread.of(one[figure] for one in measurements) for figure in FIGURES}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "about": {**machine(), "Python": platform.python_version(), "torch": torch.__version__},
        "modules": measurements[0]["modules"], "first": first,
        "summary": {figure: spread._asdict() for figure, spread in summary.items()},
        "as_promised": {figure: summary[figure].median <= limit for figure, limit in LIMITS.items()},
        "measurements": measurements,
    }  # fmt: skip


def install(target: Path) -> None:
    """Copy the published files of this checkout."""
    for name in tracked_files():
        if name.split("/")[0] in PUBLISHED:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def started(host: Host, base: Path) -> dict:
    return measured("benchmarks.startup_.start", [str(host.folder), str(base)])


def of_pack(figures: dict) -> dict:
    """What loading the pack took. Raises HostError: ComfyUI could not load it."""
    pack = figures["packs"][PACK_FOLDER]
    if not pack.pop("loaded"):
        raise HostError("ComfyUI could not load the pack: python dev.py test says more.")
    return pack


def text(report: dict) -> list[str]:
    rows = []
    for figure, name in FIGURES.items():
        kept = report["as_promised"].get(figure)
        promise = ["", ""] if kept is None else [f"≤ {LIMITS[figure]:g}", "yes" if kept else "NO"]
        rows.append([name, Spread(**report["summary"][figure]).text(2), *promise])
    first, about = report["first"], report["about"]
    return [
        "",
        *text_table(["", "median (range)", "target", "met"], rows),
        "",
        f"The first start of all compiles {report['modules']} modules: {first['cpu']:.2f} s of the processor.",
        machine_text(about, {name: about[name] for name in ("Python", "torch")}),
        *busy_text(report["measurements"]),
    ]


if __name__ == "__main__":
    sys.exit(main())
