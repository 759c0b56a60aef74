"""One mistake at a time, made in a copy of the repository, and what the tests say to it."""

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from .executed import Executed, Watched
from .forked import Ended, run_pytest
from .nearest import nearest
from .sites import Mutant

KILLED, TIMED_OUT, SURVIVED = "killed", "timed out", "survived"
# A group of tests gets so many times what it took without a mistake, and so much for its start.
PATIENCE, START_SECONDS = 5, 60
_PASSED, _NOTHING_COLLECTED = 0, 5
_changes = itertools.count(1)


class Outcome(NamedTuple):
    """kind: KILLED, TIMED_OUT (which is a kill, too) or SURVIVED; by: the first test that failed, or how pytest ended;
    tests: how many were asked"""

    kind: str
    by: str
    tests: int
    seconds: float


def copied(root: Path, folder: Path) -> Path:
    """A copy, in `folder`, of the repository's files: those that git tracks and those that it would."""
    copy = folder / "repository"
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=root, capture_output=True, check=True
    )
    for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
        if (root / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name)
    return copy


def tried(copy: Path, mutant: Mutant, found: Executed) -> Outcome:
    """Make the mistake, ask the nearest tests, and take it back."""
    asked, seconds = 0, 0.0
    with _made(copy, mutant):
        for group in nearest(mutant, found):
            ended = _asked(copy, group)
            asked, seconds = asked + len(group), seconds + ended.seconds
            if ended.status is None:
                return Outcome(TIMED_OUT, "pytest did not end", asked, seconds)
            if ended.status not in (_PASSED, _NOTHING_COLLECTED):
                return Outcome(KILLED, ended.result or f"pytest ended with status {ended.status}", asked, seconds)
    return Outcome(SURVIVED, "" if asked else "no test executes it", asked, seconds)


def _asked(copy: Path, tests: list[Watched]) -> Ended:
    plugin = Chosen(test.id for test in tests)
    files = dict.fromkeys(test.id.split("::")[0] for test in tests)
    limit = START_SECONDS + PATIENCE * sum(test.seconds for test in tests)
    return run_pytest(copy, ["-x", *files], plugin, limit)


@contextmanager
def _made(copy: Path, mutant: Mutant) -> Iterator[None]:
    path = copy / mutant.file
    source = path.read_bytes()
    _write(path, mutant.mutation.applied(source))
    try:
        yield
    finally:
        _write(path, source)


def _write(path: Path, content: bytes) -> None:
    """With a time of its own, whole seconds later than any before: Python keeps what it compiled by time and size."""
    path.write_bytes(content)
    time = path.stat().st_mtime + 10 * next(_changes)
    os.utime(path, (time, time))


class Chosen:
    """A pytest plugin: of all that is collected, these tests only, file by file; `result` is the first that fails."""

    def __init__(self, ids: Iterable[str]):
        self._place = {test: place for place, test in enumerate(ids)}
        self.result: str | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        items[:] = sorted((item for item in items if item.nodeid in self._place), key=self._order)

    def _order(self, item) -> tuple[str, int]:
        return item.nodeid.split("::")[0], self._place[item.nodeid]

    def pytest_runtest_logreport(self, report):
        self._note(report)

    def pytest_collectreport(self, report):
        self._note(report)

    def _note(self, report):
        if report.failed and self.result is None:
            self.result = report.nodeid
