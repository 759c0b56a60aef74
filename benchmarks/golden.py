"""Whether two revisions do the same, to the last bit: training, files, the command line, the nodes.

    python dev.py bench golden OLD NEW [--part PART …] [--json FILE]

OLD and NEW are revisions of git; "." is the working tree. Both get the same inputs, made from seeds, and write what
they make of them into a folder each, in the same place, on one thread, with the clocks that tell the date held still.
Then every tensor, every piece of metadata and every text of the two folders is compared. The exit status is 1 if
anything differs, and all that differs is listed.

Of either revision only names are used that are for ever (sara_core's public ones, the command line, node ids), so
that a revision in which every file lies elsewhere can be compared with one from before.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.golden_.checkouts import NoSuchRevision, check_out, full_name
from benchmarks.golden_.compare import Comparison, compare_folders
from benchmarks.golden_.stillness import ENVIRONMENT
from devtools.comfyui.install import ROOT, HostError, prepare
from devtools.progress import Progress

WORKER = Path(__file__).parent / "golden_"
PARTS = ("library", "commands", "nodes")
# The lines of a failed worker's output that are shown.
LAST_LINES = 40


def main() -> int:
    arguments = parsed()
    try:
        report = compared(arguments.old, arguments.new, arguments.part or PARTS, Progress())
    except (NoSuchRevision, HostError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(text(report)))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if any(part["differences"] for part in report["parts"].values()) else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dev.py bench golden", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", metavar="OLD", help='a revision of git, or "." for the working tree')
    parser.add_argument("new", metavar="NEW", help="another one")
    parser.add_argument("--part", action="append", choices=PARTS, help="compare only this (may be given several times)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report to FILE, too")
    arguments = parser.parse_args()
    if arguments.json is not None and not arguments.json.resolve().parent.is_dir():
        parser.error(f"the folder of {arguments.json} does not exist")
    return arguments


def compared(old: str, new: str, parts: tuple[str, ...], progress: Progress) -> dict:
    """The report: both revisions' full names, and of each part what was compared.

    Raises NoSuchRevision, and HostError if a revision cannot do what is asked of it.
    """
    # Before anything takes time: a branch may have moved on until the second side's turn.
    names = {"old": full_name(ROOT, old), "new": full_name(ROOT, new)}
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-golden-") as temporary:
        folder = Path(temporary)
        shutil.copytree(WORKER, folder / "code/golden_", ignore=shutil.ignore_patterns("__pycache__"))
        progress.say("making the inputs")
        _run(["-m", "benchmarks.golden_.inputs", str(folder / "inputs")], ROOT)
        host, seconds = prepare(progress=progress).folder, {}
        for side, name in names.items():
            seconds[side] = _results(folder, side, name, parts, host, progress)
        found = {part: compare_folders(folder / "old" / part, folder / "new" / part) for part in parts}
        return {
            "revisions": {
                side: {"asked": asked, "name": names[side], "seconds": seconds[side]}
                for side, asked in (("old", old), ("new", new))
            },
            "parts": {part: asdict(result) for part, result in found.items()},
        }


def _results(
    folder: Path, side: str, name: str, parts: tuple[str, ...], host: Path, progress: Progress
) -> dict[str, float]:
    """Make a revision's results, in folder/<side>/<part>; returns the seconds that each part took."""
    # Both sides work in the same places, so that no path that stands in a result can differ.
    checkout, results = folder / "checkout", folder / "results"
    check_out(ROOT, name, checkout)
    # Hosts are started by the same program for both: its place may be another in the other revision.
    shutil.rmtree(checkout / "devtools")
    shutil.copytree(ROOT / "devtools", checkout / "devtools", ignore=shutil.ignore_patterns("__pycache__"))
    seconds = {}
    for part in parts:
        progress.say(f"{side}: {part} of {name}")
        begin = time.monotonic()
        (results / part).mkdir(parents=True)
        arguments = [part, folder / "inputs", results / part, host]
        _run(["-m", "golden_.worker", *map(str, arguments)], checkout, {"PYTHONPATH": str(folder / "code")})
        seconds[part] = round(time.monotonic() - begin, 1)
    results.rename(folder / side)
    shutil.rmtree(checkout)
    return seconds


def _run(arguments: list[str], folder: Path, settings: dict[str, str] = {}) -> None:
    """Run the interpreter in a folder, all that moves held still. Raises HostError with the end of what it said."""
    command, environment = [sys.executable, *arguments], {**os.environ, **ENVIRONMENT, **settings}
    result = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace",
    )  # fmt: skip
    if result.returncode:
        last = "\n".join(result.stdout.splitlines()[-LAST_LINES:])
        raise HostError(f"{' '.join(arguments)} failed:\n{last}")


def text(report: dict) -> list[str]:
    """The report for people, in lines."""
    lines = [f"{side}: {about['asked']} ({about['name']}), {sum(about['seconds'].values()):.0f} s"
             for side, about in report["revisions"].items()]  # fmt: skip
    for part, found in report["parts"].items():
        result = Comparison(**found)
        lines.append(
            f"{part}: {result.files:,} files with {result.tensors:,} tensors, {result.bytes:,} bytes compared, "
            f"{len(result.differences)} differences"
        )
        lines += [f"  {difference}" for difference in result.differences]
    return lines


if __name__ == "__main__":
    sys.exit(main())
