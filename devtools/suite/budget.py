"""What the tests may take on two cores, and what they took. Standard library only: dev.py imports it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# Environment variable with the file to which recording.py appends.
TIMES = "SARA_TEST_TIMES"

# Minutes, by the folder of tests/; everything that is in no such folder is "other".
BUDGET = {"core": 9, "nodes": 7, "browser": 3, "other": 4}
RESERVE = 2
SLOWEST = 10


class TimeOfTest(NamedTuple):
    """What one run of one test took.

    seconds: of the clock; processor: of all cores together; at_once: how many tests ran at a time
    """

    test: str
    seconds: float
    processor: float
    at_once: int

    @property
    def slice(self) -> str:
        folders = self.test.split("/")
        return folders[1] if folders[0] == "tests" and folders[1] in BUDGET else "other"


def read_times(path: Path) -> list[TimeOfTest]:
    """The tests of all runs that were recorded in a file, which need not exist."""
    if not path.exists():
        return []
    return [TimeOfTest(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def summary(times: Sequence[TimeOfTest]) -> str:
    """A table of the slices, the slowest tests, and what has gone over its budget; empty without a test."""
    if not times:
        return ""
    took = {name: sum(time.seconds / time.at_once for time in _of(name, times)) / 60 for name in BUDGET}
    processor = {name: sum(time.processor for time in _of(name, times)) / 60 for name in BUDGET}
    lines = ["Minutes      took  budget  processor"]
    lines += [f"{name:10} {took[name]:6.1f} {BUDGET[name]:7} {processor[name]:10.1f}" for name in BUDGET]
    whole = sum(BUDGET.values()) + RESERVE
    lines += [
        f"{'together':10} {sum(took.values()):6.1f} {whole:7} {sum(processor.values()):10.1f}",
        "", f"The {SLOWEST} slowest tests, in seconds",
        *(f"{time.seconds:7.1f}  {time.test}" for time in sorted(times, key=lambda time: -time.seconds)[:SLOWEST]),
    ]  # fmt: skip
    over = [f"{name} took {took[name]:.1f} of its {of} minutes" for name, of in BUDGET.items() if took[name] > of]
    if over:
        lines += ["", f"!!! OVER THE BUDGET: {', '.join(over)}. Make the slowest of them faster, without a check less."]
    return "\n".join(lines)


def _of(name: str, times: Sequence[TimeOfTest]) -> list[TimeOfTest]:
    return [time for time in times if time.slice == name]
