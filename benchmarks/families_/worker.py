"""Measures cases one after the other in a process of its own: `python -m benchmarks.families_.worker HOST_FOLDER BASE`.

On standard input it gets a case a line, "CLASS<tab>CASE"; on standard output a line that begins with MARK answers each,
the first of them what the host is. It may crash or hang: whoever started it begins another for the next case.
"""

import json
import logging
import os
import sys
from pathlib import Path

# Now: once the host has the first place among the folders, `tests` may be another.
from . import build, measure
from .cases import CASES, cases_of

MARK = "@@"


def main() -> int:
    from devtools.comfyui.in_process import InProcessHost
    from devtools.comfyui.install import Host

    folder, base = map(Path, sys.argv[1:3])
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever the host prints is not an answer
    host = InProcessHost(Host(folder, Path(sys.executable), is_users_own=True), base)
    logging.disable(logging.WARNING)
    classes = {config.__name__: config for config in build.registered()}
    _answer(answers, {"version": _version(), "classes": {name: [case.name for case in cases_of(config)]
                                                         for name, config in classes.items()}})  # fmt: skip
    cases = {case.name: case for case in CASES}
    for line in sys.stdin:
        name, case = line.rstrip("\n").split("\t")
        _answer(answers, measure.measure(host, cases[case], classes[name]))
    return 0


def _version() -> str:
    try:
        from comfyui_version import __version__
    except ImportError:
        return "unknown"
    return __version__


def _answer(stream, value: dict) -> None:
    print(MARK + json.dumps(value, ensure_ascii=False), file=stream, flush=True)


if __name__ == "__main__":
    sys.exit(main())
