"""Two people at a real ComfyUI, odd files, a full disk, kills, a second server: does every promise hold all the time?

    python dev.py bench soak [--minutes M | --turns N] [--seed S] [--json FILE]

Each turn is an action (train, cancel, resume, draw, merge, bake, extract, convert …) and what disturbs it, both drawn
from the seed alone. After each, every promise is checked: the model in memory and its picture are the very bits of the
first, everything that was saved or kept is there unchanged and whole, nothing half-written is left, a run gives the
same values each time, the server answers, and its memory, open files, threads and temporary files do not grow. What is
broken is printed as it is found, and the exit status is 1. The full disk is a small one in memory, which takes Linux
and the super-user; elsewhere the folders refuse new files instead.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.lib.report import check_json_option, machine
from benchmarks.soak_ import plan
from benchmarks.soak_.actions import ACTIONS
from benchmarks.soak_.faults import FAULTS
from benchmarks.soak_.judge import Judge
from benchmarks.soak_.site import Site
from benchmarks.soak_.small_disk import SIZE
from benchmarks.soak_.turns import Report, first_files, take
from devtools.checkpoint import demo_checkpoint
from devtools.comfyui.install import prepare
from devtools.progress import Progress

MINUTES = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench soak", description=__doc__.splitlines()[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=MINUTES, help=f"how long (default: {MINUTES:.0f})")
    length.add_argument("--turns", type=int, help="so many instead, however long they take")
    parser.add_argument("--seed", type=int, default=0, help="other numbers do other things (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was done and found to FILE")
    arguments = parser.parse_args()
    check_json_option(parser, arguments.json)
    progress, report = Progress(), Report()
    deadline = time.monotonic() + 60 * arguments.minutes

    def goes_on() -> bool:
        return report.turns < arguments.turns if arguments.turns is not None else time.monotonic() < deadline

    progress.say(f"seed {arguments.seed}")
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-soak-", ignore_cleanup_errors=True) as folder:
        site = Site(prepare(progress=progress), demo_checkpoint(progress), Path(folder, "base"))
        progress.say(disk_text(site))
        judge = Judge(site)
        try:
            soak(site, judge, arguments.seed, goes_on, report, progress)
        except KeyboardInterrupt:
            progress.say("stopped")
        finally:
            site.close()
        lives = [memory_text(watch) for watch in judge.watches if watch.readings]
        kept = len(judge.promises)
    print(f"seed {arguments.seed}: {report.turns} turns, {sum(report.endings.values())} prompts "
          f"({', '.join(f'{number} {kind}' for kind, number in report.endings.most_common())})")  # fmt: skip
    for name, counted in (("actions", report.actions), ("faults", report.faults)):
        print(f"{name}: " + ", ".join(f"{number} {what}" for what, number in counted.most_common()))
    print("each server's memory of its own, first and most: " + ", ".join(lives))
    print(f"{kept} files promised in the end, {len(report.violations)} violations")
    if report.violations:
        last = report.violations[-1]["turn"]
        print(f"To see them again: python dev.py bench soak --seed {arguments.seed} --turns {last}")
    if arguments.json:
        written = {"machine": machine(), "seed": arguments.seed, "small disk": site.has_small_disk, **vars(report)}
        arguments.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return 1 if report.violations else 0


def soak(site: Site, judge: Judge, seed: int, goes_on: Callable[[], bool], report: Report, progress: Progress) -> None:
    """All turns, as long as it goes on; what they did and what was broken is in the report."""
    site.start()
    report.violated(0, "the start", plan.NOTHING, judge.begin(), progress.say)
    first_files(site, judge, report, progress.say)
    for turn in plan.turns(seed, list(ACTIONS), list(FAULTS)):
        if not goes_on():
            break
        take(turn, site, judge, report, progress.say)


def disk_text(site: Site) -> str:
    if site.has_small_disk:
        return f"what is saved goes to a disk in memory of {SIZE / 2**20:.0f} MiB, which is filled now and then"
    return "no small disk can be made here (Linux and the super-user can): folders refuse new files instead"


def memory_text(watch) -> str:
    memory = [reading.memory for reading in watch.readings]
    return f"{memory[0]:.0f} → {max(memory):.0f} MiB in {len(memory)} turns"


if __name__ == "__main__":
    sys.exit(main())
