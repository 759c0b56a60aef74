"""Do the tests notice a mistake of one line? Mistakes are made in a copy of the repository, one at a time.

    python dev.py bench mutations [--package NAME …] [--seed N] [--count N] [--again FILE] [--json FILE]

Drawn by the seed, as many in each package of the library: other comparisons, signs and constants, arguments swapped,
calls left out, copies not taken. First each file of tests runs once to find out which tests execute which lines, which
is kept until the code changes; then the tests that execute a mistake's line run, the nearest first, until one fails.
Mistakes that change nothing (mutations_/equivalent.py) do not count. Linux and macOS; hours, on a busy machine.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.lib.report import check_json_option, machine, text_table
from benchmarks.mutations_ import equivalent
from benchmarks.mutations_.sites import PACKAGES, Mutant, all_mutants, drawn
from devtools.comfyui.install import ROOT, prepare
from devtools.prepared import cache_root

COUNT = 20
TESTS = ("tests/core", "tests/nodes")
EQUIVALENT = "equivalent"


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench mutations", description=__doc__.splitlines()[0])
    parser.add_argument("--package", nargs="+", choices=PACKAGES, default=PACKAGES, help="default: all of them")
    parser.add_argument("--seed", type=int, default=0, help="other numbers make other mistakes (default: 0)")
    parser.add_argument("--count", type=int, default=COUNT, help=f"mistakes in each package (default: {COUNT})")
    parser.add_argument(
        "--again", type=Path, metavar="FILE", help="only those that no test noticed when --json wrote this file"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every mistake and what noticed it to FILE")
    arguments = parser.parse_args()
    check_json_option(parser, arguments.json)
    if not hasattr(os, "fork"):
        raise SystemExit("This check forks processes, which Windows cannot.")
    os.nice(10)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-mutations-") as folder:
        results = campaign(Path(folder), lambda copy: mistakes(copy, arguments))
    print_results(results, time.perf_counter() - begin)
    if arguments.json:
        report = {"machine": machine(), "seed": arguments.seed, "count": arguments.count, "mutants": results}
        arguments.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def mistakes(copy: Path, arguments: argparse.Namespace) -> list[Mutant]:
    """Those to make in a copy of the repository."""
    if arguments.again is not None:
        report = json.loads(arguments.again.read_text(encoding="utf-8"))
        return unnoticed(copy, report["mutants"])
    return [
        mutant for package in arguments.package for mutant in drawn(copy, package, arguments.count, arguments.seed)
    ]


def unnoticed(copy: Path, results: list[dict]) -> list[Mutant]:
    """Those of earlier results that no test noticed, as far as their lines are still there."""
    keys = {
        (result["file"], result["function"], result["original"], result["mutated"])
        for result in results if result["kind"] == "survived"
    }  # fmt: skip
    return [
        mutant for package in PACKAGES for mutant in all_mutants(copy, package)
        if (mutant.file, mutant.mutation.function, mutant.original, mutant.mutated) in keys
    ]  # fmt: skip


def campaign(folder: Path, chosen: Callable[[Path], list[Mutant]]) -> list[dict]:
    """What became of each mistake. chosen: those to make in a copy of the repository"""
    from benchmarks.mutations_ import forked, runner
    from benchmarks.mutations_.executed import executed

    prepare()  # now, so that no test has to
    forked.preload()
    copy = runner.copied(ROOT, folder)
    files = [path.relative_to(copy).as_posix() for tests in TESTS for path in sorted((copy / tests).rglob("test_*.py"))]
    found = executed(copy, files, cache_root() / "mutations", say)
    results = []
    for mutant in chosen(copy):
        reason = equivalent.reason(mutant)
        if reason is not None:
            outcome = runner.Outcome(EQUIVALENT, reason, 0, 0.0)
        else:
            outcome = runner.tried(copy, mutant, found)
        results.append(record(mutant, outcome))
        say(f"{outcome.kind}: {place(results[-1])} {mutant.original}  →  {mutant.mutated}  ({outcome.by})")
    return results


def record(mutant: Mutant, outcome) -> dict:
    mutation = mutant.mutation
    return {
        "package": mutant.package, "file": mutant.file, "line": mutation.line, "function": mutation.function,
        "operator": mutation.operator, "original": mutant.original, "mutated": mutant.mutated,
        **outcome._asdict(), "seconds": round(outcome.seconds, 1),
    }  # fmt: skip


def print_results(results: list[dict], seconds: float) -> None:
    """A table of the packages, and every mistake that no test noticed."""
    header = ["package", "mistakes", "equivalent", "killed", "of these timed out", "survived", "rate"]
    packages = list(dict.fromkeys(result["package"] for result in results))
    rows = [row(name, [result for result in results if result["package"] == name]) for name in packages]
    print("\n".join(text_table(header, [*rows, row("all", results)])))
    for result in results:
        if result["kind"] == "survived":
            print(f"{place(result)} [{result['operator']}] {result['by']}")
            print(f"  - {result['original']}\n  + {result['mutated']}")
    print(f"{len(results)} mistakes in {seconds / 60:.0f} min")


def row(name: str, results: list[dict]) -> list[str]:
    kinds = Counter(result["kind"] for result in results)
    killed, real = kinds["killed"] + kinds["timed out"], len(results) - kinds[EQUIVALENT]
    rate = f"{killed / real:.0%}" if real else "-"
    return [name, *map(str, (len(results), kinds[EQUIVALENT], killed, kinds["timed out"], kinds["survived"])), rate]


def place(result: dict) -> str:
    return f"{result['file']}:{result['line']} {result['function']}"


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
