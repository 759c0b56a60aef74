"""Coverage-guided fuzzing: inputs that reach new lines of our code, in a new order, become parents of further inputs.

Written here, because the known engine (atheris) exists for one operating system and three versions of Python only.
"""

import faulthandler
import functools
import math
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CODE = str(Path(__file__).resolve().parents[2] / "sara_core")
LONGEST_SECONDS = 5.0
HANGING_SECONDS = 60
# Of a few thousand inputs that are found, old ones rarely lead on.
RECENT = 200


@dataclass
class Target:
    """Something that reads untrusted bytes.

    read: path of a file with them → nothing; raises one of `own_errors` to refuse them, and AssertionError if what it
        accepted is not sound
    mutate: (bytes, random) → bytes of the same kind; seeds: sound inputs to begin with
    """

    name: str
    seeds: Sequence[bytes]
    read: Callable[[Path], None]
    mutate: Callable[[bytes, random.Random], bytes]
    own_errors: tuple[type[Exception], ...]
    ending: str = ".safetensors"


@dataclass
class Findings:
    """accepted: inputs that were not refused; arcs: steps from line to line that were seen
    failures: what went wrong → the first input that did it; slowest: seconds of one input"""

    inputs: int = 0
    accepted: int = 0
    arcs: int = 0
    slowest: float = 0.0
    failures: dict[str, bytes] = field(default_factory=dict)


def explore(target: Target, inputs: int, folder: Path, seed: int = 0) -> Findings:
    """Read the seeds and `inputs` of their descendants. The same arguments explore the same inputs."""
    choose, corpus, seen, findings = random.Random(seed), list(target.seeds), set(), Findings()
    path, armed = folder / f"input{target.ending}", -math.inf
    for number in range(len(target.seeds) + inputs):
        if number < len(target.seeds):
            content = target.seeds[number]
        else:
            parents = corpus if choose.random() < 0.5 else corpus[-RECENT:]
            content = target.mutate(choose.choice(parents), choose)
        path.write_bytes(content)
        if time.perf_counter() - armed > HANGING_SECONDS / 6:  # for each input it would take longer than most inputs
            faulthandler.dump_traceback_later(HANGING_SECONDS, exit=True)
            armed = time.perf_counter()
        arcs = _observed(target, path, content, findings)
        if number >= len(target.seeds) and not arcs <= seen:
            corpus.append(content)
        seen |= arcs
    faulthandler.cancel_dump_traceback_later()
    findings.inputs, findings.arcs = inputs, len(seen)
    return findings


@functools.cache
def _real_path(filename: str) -> str:
    """Without links: the host imports the pack through one."""
    return os.path.realpath(filename)


def _observed(target: Target, path: Path, content: bytes, findings: Findings) -> set[tuple]:
    """Read one input; returns the arcs it took, and adds what happened to the findings."""
    arcs: set[tuple] = set()
    watched: dict = {}

    def on_call(frame, event, argument):
        code = frame.f_code
        if code not in watched:
            watched[code] = _real_path(code.co_filename).startswith(CODE)
        if not watched[code]:
            return None
        last = 0

        def on_line(frame, event, argument):
            nonlocal last
            if event == "line":
                arcs.add((code, last, frame.f_lineno))
                last = frame.f_lineno
            return on_line

        return on_line

    others, begin = sys.gettrace(), time.process_time()  # of this process: others may keep it waiting
    sys.settrace(on_call)
    try:
        target.read(path)
        findings.accepted += 1
    except target.own_errors:
        pass
    except Exception as error:
        findings.failures.setdefault(_place(error), content)
    finally:
        sys.settrace(others)
    seconds = time.process_time() - begin
    findings.slowest = max(findings.slowest, seconds)
    if seconds > LONGEST_SECONDS:
        findings.failures.setdefault(f"took {seconds:.1f} s", content)
    return arcs


def _place(error: Exception) -> str:
    """Kind of error and where it was raised, which tells one fault from another."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return f"{type(error).__name__}: {str(error)[:200]} ({Path(code.co_filename).name}:{trace.tb_lineno})"
