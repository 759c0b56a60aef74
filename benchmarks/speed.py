"""Everything that is promised of speed, in one table: another revision, today's build and the peers, side by side.

    python dev.py bench speed [--against REVISION] [--part steps|comfyui|apply|files|startup] [--quick] [--json FILE]

Steps: of each row SaRA, PEFT's LoRA and, with --against, that revision's SaRA live at once, each in a process of its
own, and step in turns; in two groups, each with the LoRA, where all would take more than 16 GB. A ratio is the median
over the turns, each of one turn's own; beside it stands the ratio of the seconds of the processor, which other programs
disturb least. The other parts are benchmarks of their own (train, apply, files, startup), run for each revision one
after the other. What the run needs of memory and time is said before it starts. --quick measures steps of a part of
SD1.5's UNet and the start of ComfyUI, in a tenth of the memory; --small tiny models, only to see that it works.
"""

import argparse
import json
import platform
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks.golden_.checkouts import NoSuchRevision, full_name
from benchmarks.lib.report import Spread, busy_text, check_json_option, machine, machine_text, text_table
from benchmarks.speed_ import needs, reports
from benchmarks.speed_.revision import measurable
from benchmarks.speed_.targets import (
    GRADIENT, PRESSED, QUICK, REPORTED, SMALL, STEP, TRAININGS, UPDATE, WORDS, Training,
)  # fmt: skip
from benchmarks.speed_.turns import in_turns
from benchmarks.train_.pytorch import ATTENTION, OURS
from devtools.comfyui.install import ROOT, HostError
from devtools.progress import Progress

PARTS = ("steps", "comfyui", "apply", "files", "startup")
TODAY, BEFORE, PEER = "today", "before", "peer"


def main() -> int:
    arguments = parsed()
    if arguments.table:
        print("\n".join(markdown(json.loads(arguments.table.read_text(encoding="utf-8")))))
        return 0
    progress = Progress()
    report = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(), "against": arguments.against, "rows": [], "measurements": [],
        "versions": {"torch": torch.__version__, "Python": platform.python_version(),
                     "instructions": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()},
    }  # fmt: skip
    try:
        with tempfile.TemporaryDirectory(prefix="comfyui-sara-speed-") as folder:
            checkouts = {TODAY: ROOT}
            if arguments.against:
                report["against"] = full_name(ROOT, arguments.against)
                checkouts[BEFORE] = measurable(report["against"], Path(folder, "before"))
            progress.say(f"this needs {needed(arguments, len(checkouts)).text()}")
            measure(arguments, checkouts, report, progress, lambda: written(report, arguments.json))
    except (HostError, NoSuchRevision) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(text(report)))
    return 0


def parsed() -> Namespace:
    parser = argparse.ArgumentParser(
        prog="dev.py bench speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", metavar="REVISION", help="measure this one too, in the same turns")
    parser.add_argument("--part", choices=PARTS, action="append", help="one part only (default: all)")
    parser.add_argument("--row", metavar="TEXT", help="of the steps only the rows with this in their name")
    parser.add_argument("--repetitions", type=int, default=7, help="steps of each training (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="what can be said in a few minutes")
    parser.add_argument("--small", action="store_true", help="a tiny model: only to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement to FILE")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print such a file as a Markdown table")
    arguments = parser.parse_args()
    if arguments.repetitions < 1:
        parser.error("at least 1 repetition is needed")
    check_json_option(parser, arguments.json)
    usual = ("steps",) if arguments.small else ("steps", "startup") if arguments.quick else PARTS
    arguments.part = arguments.part or usual
    return arguments


def measure(
    arguments: Namespace, checkouts: dict[str, Path], report: dict, progress: Progress, save: Callable[[], None]
) -> None:
    """Fill the report row by row, and have it saved after each: a run that is ended early has said what it knows."""
    for training in trainings_of(arguments):
        turns = {}
        try:
            for at_once in beside_the_peer(training, checkouts):
                report["measurements"].append(stepped(training, at_once, arguments.repetitions, progress))
                turns |= {side: report["measurements"][-1]["turns"] for side in at_once}
        except HostError as error:  # too little memory for all at once, above all
            progress.say(f"    left out: {error}")
        report["rows"] += step_rows(training, turns)
        save()
    for part in (part for part in PARTS if part != "steps" and part in arguments.part):
        wanted = [one for one in (*REPORTED, PRESSED) if one.part == part]
        found = {}
        for side, checkout in checkouts.items():
            progress.say(f"{part}: {side}")
            try:
                found[side] = reports.figures(wanted, reports.report_of(part, checkout, progress), progress)
            except HostError as error:
                progress.say(f"    left out: {error}")
        report["rows"] += [
            {"name": one.name, "target": one.target, **{side: of[one.name] for side, of in found.items()
                                                        if one.name in of}}
            for one in wanted
        ]  # fmt: skip
        save()


def trainings_of(arguments: Namespace) -> list[Training]:
    """The rows of the steps that are asked for."""
    trainings = SMALL if arguments.small else QUICK if arguments.quick else TRAININGS
    wanted = (one for one in trainings if arguments.row is None or arguments.row in one.name)
    return list(wanted) if "steps" in arguments.part else []


def beside_the_peer(training: Training, checkouts: dict[str, Path]) -> list[dict[str, Path]]:
    """The revisions that train at once, with the LoRA: each by itself where the memory would not do for all."""
    if needs.of_training(training, 1 + len(checkouts), 1).mib <= needs.MOST_MIB:
        return [checkouts]
    return [{side: checkout} for side, checkout in checkouts.items()]


def needed(arguments: Namespace, revisions: int) -> needs.Needs:
    """What the run takes."""
    sides = dict.fromkeys(range(revisions), ROOT)
    steps = [
        needs.of_training(training, 1 + len(at_once), arguments.repetitions)
        for training in trainings_of(arguments) for at_once in beside_the_peer(training, sides)
    ]  # fmt: skip
    return needs.together([*steps, *needs.of_parts(arguments.part, revisions)])


def stepped(training: Training, checkouts: dict[str, Path], repetitions: int, progress: Progress) -> dict:
    """What every turn of a training and of those beside it took."""
    progress.say(f"steps: {training.name}")
    specs = {PEER: (training.spec(ATTENTION), ROOT)}
    specs |= {side: (training.spec(OURS), checkout) for side, checkout in checkouts.items()}
    turns, cores = in_turns(specs, repetitions)
    for side in checkouts:
        progress.say(f"    {side} ÷ LoRA: {ratio(turns[side], turns[PEER], 'seconds').text(3)}")
    return {"name": training.name, "turns": turns, "cores_used_by_others": cores}


def step_rows(training: Training, turns: dict[str, dict[str, list[dict]]]) -> list[dict]:
    """The table's rows of one training: each side's median for each quantity that something is said of.

    turns: side → the turns that it took part in, its own and the peer's among them
    """
    rows = []
    for quantity, target in training.targets.items():
        row = {"name": f"{training.name}: {WORDS[quantity]}", "target": target}
        for side in (side for side in (BEFORE, TODAY) if side in turns):
            ours, peer = turns[side][side], turns[side][PEER]
            spread = quantities(ours, peer)[quantity]
            row[side], row[f"{side} spread"] = spread.median, list(spread)
            if quantity == STEP:
                row[f"{side} processor"] = ratio(ours, peer, "processor").median
        rows.append(row)
    return rows


def quantities(ours: Sequence[dict], peer: Sequence[dict]) -> dict[str, Spread]:
    return {
        STEP: ratio(ours, peer, "seconds"),
        GRADIENT: Spread.of(turn["gradient"] / turn["seconds"] for turn in ours),
        UPDATE: Spread.of(turn["update"] / turn["seconds"] for turn in ours),
    }


def ratio(ours: Sequence[dict], peer: Sequence[dict], of: str) -> Spread:
    return Spread.of(mine[of] / theirs[of] for mine, theirs in zip(ours, peer))


def written(report: dict, path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def text(report: dict) -> list[str]:
    """The table, and where it was measured."""
    return [
        "", *text_table(*cells(report)), "",
        "Medians over the turns; in brackets the ratio of the processor's seconds.",
        machine_text(report["machine"], report["versions"]),
        *(busy_text(report["measurements"]) if report["measurements"] else []),
    ]  # fmt: skip


def markdown(report: dict) -> list[str]:
    """The table as the documentation has it."""
    header, rows = cells(report)
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def cells(report: dict) -> tuple[list[str], list[list[str]]]:
    """The table's header and rows."""
    lines = []
    for row in report["rows"]:
        target, today = row["target"], row.get(TODAY)
        met = "" if target is None or today is None else "yes" if today <= target else "NO"
        limit = "" if target is None else f"≤ {target:g}"
        lines.append([row["name"], *(cell(row, side) for side in (BEFORE, TODAY)), limit, met])
    return ["", report["against"][:10] if report["against"] else "before", "today", "target", "met"], lines


def cell(row: dict, side: str) -> str:
    if side not in row:
        return "–"
    processor = row.get(f"{side} processor")
    return f"{row[side]:.3f}" + ("" if processor is None else f" ({processor:.3f})")


if __name__ == "__main__":
    sys.exit(main())
