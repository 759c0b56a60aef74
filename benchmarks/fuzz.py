"""Hostile input to everything that reads files: no crash, no hang, no memory beyond a cap, always our own error.

    python dev.py bench fuzz [--inputs N] [--seed S] [--json FILE]

Coverage-guided, in this process, whose address space may not grow by more than 512 MiB beyond what it has after
loading (Linux). Inputs that do something else than they may are kept in the folder for temporary files.
"""

import argparse
import faulthandler
import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from benchmarks._exploration import explore
from benchmarks._untrusted import targets

INPUTS = 216_000
CAP = 512 * 2**20
FAILURES = Path(tempfile.gettempdir(), "sara-fuzz-failures")
# How much of all inputs each of the quick ones gets, compared with an importer.
WEIGHTS = {"positions": 3, "delta file": 3, "base identity": 2}


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=INPUTS, help=f"in all (default: {INPUTS:,})")
    parser.add_argument("--seed", type=int, default=0, help="other numbers explore other inputs (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to FILE")
    arguments = parser.parse_args()
    faulthandler.enable()
    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")
    report, begin = {}, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        everything = list(targets(Path(folder)))
        capped = cap_memory()
        total = sum(WEIGHTS.get(target.name, 1) for target in everything)
        for target in everything:
            share = WEIGHTS.get(target.name, 1) / total
            started = time.perf_counter()
            findings = explore(target, round(arguments.inputs * share), Path(folder), arguments.seed)
            report[target.name] = {
                **vars(findings), "failures": list(findings.failures), "seconds": time.perf_counter() - started,
            }  # fmt: skip
            print(
                f"{target.name}: {findings.inputs:,} inputs, {findings.accepted:,} accepted, {findings.arcs} arcs, "
                f"slowest {findings.slowest * 1000:.0f} ms, {report[target.name]['seconds']:.0f} s, "
                f"{len(findings.failures)} failures", flush=True,
            )  # fmt: skip
            for number, (failure, content) in enumerate(findings.failures.items()):
                FAILURES.mkdir(exist_ok=True)
                path = FAILURES / f"{target.name.replace(' ', '-').replace(',', '')}-{number}"
                path.write_bytes(content)
                print(f"  {failure}: {path}")
    inputs, failures = (sum(found) for found in zip(*((r["inputs"], len(r["failures"])) for r in report.values())))
    print(
        f"{inputs:,} inputs in {time.perf_counter() - begin:.0f} s, {failures} failures"
        + ("" if capped else "; memory was not capped on this system")
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 1 if failures else 0


def cap_memory() -> bool:
    """Let the address space grow by CAP at most: beyond that, an allocation fails and is found."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return False
    limit = pages * resource.getpagesize() + CAP
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    return True


if __name__ == "__main__":
    sys.exit(main())
