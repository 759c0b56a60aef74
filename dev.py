#!/usr/bin/env python3
"""The one entry for people who work here; needs only Python 3.10-3.13 and git.

    python dev.py demo [--open] [--output DIR]     the three workflows in a real ComfyUI, from nothing
    python dev.py test [PYTEST ARGUMENTS]          ruff and the tests, in a real ComfyUI's interpreter; all of them:
                                                   those of bits a second time, as on an old processor
    python dev.py bench [NAME] [--json FILE]       measurements; without a name, says which there are
    python dev.py host [--version V] [--path | --python]
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from devtools.comfyui.install import (
    DEFAULT_VERSION, OLDEST_VERSION, ROOT, SOURCES, Host, HostError, link_pack, make_base, prepare, start_command,
    with_requirements,
)  # fmt: skip
from devtools.packer import prepare_packer
from devtools.progress import Progress
from devtools.suite.budget import TIMES, read_times, summary

REQUIREMENTS = ROOT / "requirements-dev.txt"
# Where the ComfyUI that `python dev.py host` names keeps models, pictures and so on.
BASE = ROOT / "comfyui-base"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    host = commands.add_parser("host", help="prepare a ComfyUI to work against and say where it is")
    host.add_argument(
        "--version", choices=sorted(SOURCES), help=f"prepare this one (default: COMFYUI_PATH, else {DEFAULT_VERSION})"
    )
    shown = host.add_mutually_exclusive_group()
    shown.add_argument("--path", action="store_true", help="print only its folder")
    shown.add_argument("--python", action="store_true", help="print only its interpreter, which runs the tests too")
    for name, text in [
        ("test", "run ruff and pytest; further arguments go to pytest"),
        ("demo", "train, use and bake a delta in a real ComfyUI"),
        ("bench", "run a measurement of the benchmarks folder"),
    ]:
        commands.add_parser(name, help=text, add_help=False)
    arguments, rest = parser.parse_known_args()
    try:
        if arguments.command == "host":
            if rest:
                parser.error(f"unrecognized arguments: {' '.join(rest)}")
            return show_host(arguments)
        return {"test": run_tests, "demo": run_demo, "bench": run_benchmark}[arguments.command](rest)
    except HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def show_host(arguments: argparse.Namespace) -> int:
    progress = Progress()
    host = prepare(arguments.version, progress)
    if arguments.path:
        print(host.folder)
        return 0
    if not host.is_users_own:
        host = with_requirements(host, REQUIREMENTS, progress)
    if arguments.python:
        print(host.python)
        return 0
    command = [str(host.python), str(host.folder / "main.py")]
    if not host.is_users_own:
        # In a base directory of this checkout: the host's own is shared, and would run another checkout's code.
        make_base(BASE)
        link_pack(BASE / "custom_nodes")
        command = start_command(host, BASE)
    print(f"ComfyUI: {host.folder}\nPython:  {host.python}\nStart:   {subprocess.list2cmdline(command)}")
    return 0


# Torch's own kernels and oneDNN's without the vectors of newer processors: they add up in another order.
OLD_PROCESSOR = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
PYTEST = ["-m", "pytest", "-p", "devtools.suite.recording"]
# All tests: in two processes of one thread each, a file in one of them.
IN_PARALLEL = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
INTERRUPTED = 2  # pytest's exit status after Ctrl-C


def run_tests(rest: list[str]) -> int:
    """Ruff, the tests and, where all of them are asked for, those of bits a second time; 0 if everything passed.

    In the end it says what the tests took, beside what they may take.
    """
    host = prepare_host()
    # Now, so that no test has to download them.
    if not host.is_users_own:
        prepare(OLDEST_VERSION)
    prepare_packer()
    ruff = run(host, ["-m", "ruff", "check", str(ROOT)])
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-") as folder:
        times = Path(folder, "times")
        recorded = {TIMES: str(times)}
        if rest:
            tests = run(host, [*PYTEST, *rest], recorded)
        else:
            tests = run(host, [*PYTEST, *IN_PARALLEL], {**recorded, **ONE_THREAD})
        results = {"ruff": ruff, "the tests with this processor's own instructions": tests}
        if not rest and tests != INTERRUPTED:
            # With all threads: what is added up by several is seen too.
            again = "the tests of bits with " + " ".join(f"{name}={value}" for name, value in OLD_PROCESSOR.items())
            print(f"Once more: {again}", flush=True)
            results[again] = run(host, [*PYTEST, "-q", "-m", "bits"], {**OLD_PROCESSOR, **recorded})
        print(summary(read_times(times)), flush=True)
    for what, status in results.items():
        if status:
            print(f"failed: {what}", file=sys.stderr)
    return next(filter(None, reversed(results.values())), 0)


def run_demo(rest: list[str]) -> int:
    return run(prepare_host(), ["-m", "devtools.demo", *rest])


def run_benchmark(rest: list[str]) -> int:
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py"))
    if not rest or rest[0] not in names:
        print(f"Benchmarks: {', '.join(names) or 'none yet'}.  python dev.py bench NAME [--json FILE]")
        return 0 if not rest else 2
    return run(prepare_host(), ["-m", f"benchmarks.{rest[0]}", *rest[1:]])


def prepare_host() -> Host:
    """A ComfyUI whose interpreter also has what the tests and tools need."""
    progress = Progress()
    return with_requirements(prepare(progress=progress), REQUIREMENTS, progress)


def run(host: Host, arguments: list[str], settings: Mapping[str, str] = {}) -> int:
    """Run the host's interpreter in the repository, and pass its exit status on.

    settings: environment variables beside those of this process
    """
    command = [str(host.python), *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONUTF8": "1", **settings})
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # it was sent to the other process too, which tidies up before it ends


if __name__ == "__main__":
    sys.exit(main())
