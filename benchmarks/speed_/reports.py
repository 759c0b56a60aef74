"""The figures that other benchmarks report, each benchmark run once for a checkout."""

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.lib.process import measured, run_module
from benchmarks.lib.random_unet import unet_file
from benchmarks.speed_.targets import Reported
from benchmarks.train_.comfyui import TRAINED
from devtools.comfyui.install import HostError
from devtools.progress import Progress

ROUNDS = 3
LATER_STEPS = 6
# Part → the benchmark, and its options.
COMMANDS = {
    "apply": ("benchmarks.apply", ["--rounds", str(ROUNDS)]),
    "files": ("benchmarks.files", ["--elements", "50000000"]),
    "startup": ("benchmarks.startup", ["--rounds", str(ROUNDS)]),
}


def report_of(part: str, checkout: Path, progress: Progress) -> dict:
    """What the part's benchmark reports of a checkout's library. Raises HostError: it failed."""
    if part == "comfyui":
        return pressed(unet_file("sd15", progress), checkout)
    module, options = COMMANDS[part]
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-bench-") as folder:
        path = Path(folder, "report.json")
        try:
            run_module(module, [*options, "--json", str(path)], checkout)
        except HostError:
            # A promise that is broken ends a benchmark with an error too, after its report.
            if not path.exists():
                raise
        return json.loads(path.read_text(encoding="utf-8"))


def pressed(unet: Path, checkout: Path) -> dict:
    """What SaRA Train takes in a ComfyUI of its own from pressing Run to its second step, beside a later step."""
    options = [str(unet), "SaRA", "off", str(LATER_STEPS + 1), str(TRAINED["sd15"])]
    figures = measured("benchmarks.train_.run", options, checkout)
    return {"pressed": figures["first_step"] / statistics.median(figures["steps"]), **figures}


def figure_at(report, path: Sequence[str]) -> float:
    """The figure of a report that the path of a `Reported` leads to. Raises KeyError where there is none."""
    for key in path:
        if key.startswith("name="):
            report = next((one for one in report if one["name"] == key.removeprefix("name=")), None)
        elif isinstance(report, list):
            report = report[int(key)] if int(key) < len(report) else None
        else:
            report = report.get(key)
        if report is None:
            raise KeyError(f"{key!r} of {' / '.join(path)}")
    return float(report)


def figures(wanted: Sequence[Reported], report: dict, progress: Progress) -> dict[str, float]:
    """Name → figure, of those that the report has."""
    found = {}
    for one in wanted:
        try:
            found[one.name] = figure_at(report, one.path)
        except KeyError as error:
            progress.say(f"    not in the report: {error}")
    return found
