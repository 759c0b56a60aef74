"""Hostile input to everything that reads files: no crash, no hang, no memory beyond a cap, always our own error.

    python dev.py bench fuzz [--inputs N] [--seed S] [--json FILE]

Delta files, importers, and the snapshots and states from which a training goes on: through the library, the command
line and SaRA Train. Coverage-guided, in this process, whose address space may not grow by more than 512 MiB beyond what
it has after loading (Linux). Inputs that do something else than they may are kept in the folder for temporary files.
"""

import argparse
import faulthandler
import json
import logging
import sys
import tempfile
import time
import warnings
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks.fuzz_.exploration import Target, explore
from benchmarks.fuzz_.untrusted import targets
from benchmarks.fuzz_.untrusted_states import COMMAND, LIBRARY, NODE, state_targets, with_node_target
from benchmarks.lib.random_unet import unet_file
from benchmarks.lib.report import machine
from devtools.comfyui.in_process import InProcessHost
from devtools.comfyui.install import prepare
from devtools.progress import Progress

INPUTS = 420_000
CAP = 512 * 2**20
FAILURES = Path(tempfile.gettempdir(), "sara-fuzz-failures")
# How much of all inputs each of these gets, compared with an importer: the quick ones, and those whose faults would end
# the process.
WEIGHTS = {"positions": 3, "delta file": 3, "base identity": 2, LIBRARY: 6, COMMAND: 5, NODE: 5}


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
        folder = Path(folder)
        host = InProcessHost(prepare(), folder / "comfyui")
        model = tiny_model(host)
        everything = [*targets(folder), *state_targets(folder)]
        capped = cap_memory()
        shares = {target.name: WEIGHTS.get(target.name, 1) for target in everything} | {NODE: WEIGHTS[NODE]}

        def fuzz(target: Target, folder: Path) -> None:
            inputs = round(arguments.inputs * shares[target.name] / sum(shares.values()))
            report[target.name] = explored(target, inputs, folder, arguments.seed)

        for target in everything:
            fuzz(target, folder)
        with_node_target(host, model, fuzz)
    inputs, failures = (sum(found) for found in zip(*((r["inputs"], len(r["failures"])) for r in report.values())))
    print(
        f"{inputs:,} inputs in {time.perf_counter() - begin:.0f} s, {failures} failures"
        + ("" if capped else "; memory was not capped on this system")
    )
    if arguments.json:
        about = {"date": datetime.now(timezone.utc).date().isoformat(), "machine": machine(), "seed": arguments.seed}
        arguments.json.write_text(json.dumps({**about, "results": report}, indent=1) + "\n", encoding="utf-8")
    return 1 if failures else 0


def explored(target: Target, inputs: int, folder: Path, seed: int) -> dict:
    """Fuzz one target, print a line about it, and keep the inputs that made it fail."""
    started = time.perf_counter()
    findings = explore(target, inputs, folder, seed)
    seconds = time.perf_counter() - started
    print(
        f"{target.name}: {findings.inputs:,} inputs, {findings.accepted:,} accepted, {findings.arcs} arcs, "
        f"slowest {findings.slowest * 1000:.0f} ms, {seconds:.0f} s, {len(findings.failures)} failures", flush=True,
    )  # fmt: skip
    for number, (failure, content) in enumerate(findings.failures.items()):
        FAILURES.mkdir(exist_ok=True)
        path = FAILURES / f"{target.name.replace(' ', '-').replace(',', '')}-{number}"
        path.write_bytes(content)
        print(f"  {failure}: {path}")
    return {**vars(findings), "failures": list(findings.failures), "seconds": seconds}


def tiny_model(host: InProcessHost):
    """A small random MODEL, loaded by the host."""
    path = unet_file("small", Progress())
    host.folder_paths.add_model_folder_path("diffusion_models", str(path.parent))
    return host.execute("UNETLoader", unet_name=path.name).outputs[0]


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
