"""What every measurement is reported with: the machine, how far repeated figures lie apart, and files of it all."""

import json
import os
import platform
import statistics
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from devtools.comfyui.install import HostError

# Other programs' use of the processor, in cores, above which times are called unreliable.
BUSY_CORES = 0.15


class Spread(NamedTuple):
    """The middle of repeated figures, and how far apart they lie."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Iterable[float]) -> "Spread":
        figures = list(figures)
        return cls(statistics.median(figures), min(figures), max(figures))

    def text(self, digits: int) -> str:
        if self.low == self.high:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def machine() -> dict:
    """What the figures depend on beside the versions."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {"system": platform.system(), "processor": processor, "cores": os.cpu_count()}


def machine_text(about: dict, versions: dict) -> str:
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "threads")
    threads = f", {versions['threads']} threads" if "threads" in versions else ""
    return f"{about['processor']}, {about['cores']} cores, {about['system']}; {named}{threads}."


def busy_text(measurements: Iterable[dict]) -> list[str]:
    """A line of warning if other programs had a part of the processor while something was measured."""
    busiest = max(measurement["cores_used_by_others"] for measurement in measurements)
    return [] if busiest <= BUSY_CORES else [f"Other programs used up to {busiest:.1f} cores: times are unreliable."]


def text_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines with the first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, *rows]:
        first, *others = (cell.ljust(width) if not n else cell.rjust(width) for n, (cell, width) in
                          enumerate(zip(row, widths)))  # fmt: skip
        lines.append("  ".join([first, *others]).rstrip())
    return lines


def add_json_option(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every measurement to FILE, and a plot beside it as .png"
    )


def check_json_option(parser: ArgumentParser, path: Path | None) -> None:
    """Refuse before hours of measuring what would fail after them."""
    if path is not None and not path.resolve().parent.is_dir():
        parser.error(f"the folder of {path} does not exist")


def reported(
    measure: Callable[[], dict], text: Callable[[dict], Iterable[str]], path: Path | None
) -> dict | None:  # fmt: skip
    """What `measure` finds: its `text` printed, all of it written as JSON if there is a path. None, with the reason
    printed, where a host is missing or fails."""
    try:
        report = measure()
    except HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return None
    print("\n".join(text(report)))
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def save(report: dict, path: Path | None, draw: Callable) -> None:
    """Write `report` as JSON and what `draw` puts on a matplotlib figure as a picture, if there is a path."""
    if path is None:
        return
    from matplotlib.figure import Figure

    path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    draw(figure)
    figure.savefig(path.with_suffix(".png"), dpi=110)
