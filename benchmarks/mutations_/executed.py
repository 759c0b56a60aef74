"""Which tests execute which lines of sara_core: each file of tests runs once, watched, in a process of its own."""

import hashlib
import inspect
import json
import os
import re
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from devtools.prepared import HostError

from .forked import run_pytest

LONGEST_SECONDS = 1800


class Watched(NamedTuple):
    """id: pytest's; seconds: of the processor, with what it set up, so that a busy machine has the same tests asked;
    lines: file → what it executed, in fixtures that it shares too"""

    id: str
    seconds: float
    lines: Mapping[str, frozenset[int]]


class Executed(NamedTuple):
    """tests: those that pass; imported: file → the lines that run when it is imported"""

    tests: list[Watched]
    imported: Mapping[str, frozenset[int]]


def executed(folder: Path, files: Iterable[str], cache: Path, say) -> Executed:
    """What the tests in `files` (paths in `folder`, a copy of the repository) execute. A file of tests runs again only
    if it has changed, or what it takes from others, or a module of the library that it executes.

    say: is told of each file that is run, and of tests that fail in spite of there being no mistake
    """
    tests, imported = [], defaultdict(set)
    for file in files:
        kept = cache / f"{_digest(folder, [file, *_helpers(folder, file)])}.json"
        found = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else None
        if found is None or found["library"] != _digests(folder, found["library"]):
            found = _run(folder, file, say)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(found), encoding="utf-8")
        tests += [Watched(one["id"], one["seconds"], _lines(one["lines"])) for one in found["tests"]]
        for path, lines in found["imported"].items():
            imported[path].update(lines)
    return Executed(tests, _lines(imported))


def _lines(by_file: Mapping[str, Iterable[int]]) -> dict[str, frozenset[int]]:
    return {path: frozenset(lines) for path, lines in by_file.items()}


def _run(folder: Path, file: str, say) -> dict:
    ended = run_pytest(folder, [file], Recorder(folder / "sara_core"), LONGEST_SECONDS)
    if ended.result is None:
        raise HostError(f"{file} ended with status {ended.status} after {ended.seconds:.0f} s, without any mistake.")
    say(f"{file}: {len(ended.result['tests'])} tests, {ended.seconds:.0f} s")
    for failed in ended.result["failed"]:
        say(f"  fails without any mistake, left out: {failed}")
    return {**ended.result, "library": _digests(folder, ended.result["imported"])}


def _helpers(folder: Path, file: str) -> list[str]:
    """What a file of tests takes from others beside the library: support, and the host's side if it needs a host."""
    taken = re.findall(r"from (tests\.[\w.]+\.test_\w+) import", (folder / file).read_text(encoding="utf-8"))
    others = [f"{module.replace('.', '/')}.py" for module in sorted(set(taken))]
    tops = ["tests/support", "devtools", *(["nodes"] if file.startswith("tests/nodes/") else [])]
    return [*others, *(
        path.relative_to(folder).as_posix() for top in tops for path in sorted((folder / top).rglob("*.py"))
    )]  # fmt: skip


def _digests(folder: Path, files: Iterable[str]) -> dict[str, str]:
    return {file: _digest(folder, [file]) for file in files}


def _digest(folder: Path, files: Iterable[str]) -> str:
    """Of names and contents; a file that is not there counts as empty."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        content = (folder / file).read_bytes() if (folder / file).exists() else b""
        digest.update(f"{file} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


class Recorder:
    """A pytest plugin: the lines under `watched` that each test executes.

    Lines that a fixture of more than one test executes count for every test that asks for it; those of a module's own
    level run but once in a process and are kept apart.
    """

    def __init__(self, watched: Path):
        self._watched = os.path.realpath(watched)
        self._root = os.path.dirname(self._watched)
        self._files: dict = {}
        self._imported: set = set()
        self._current: set = self._imported
        self._by_test = defaultdict(set)
        self._by_fixture = defaultdict(set)
        self._fixtures, self._seconds, self._failed, self._skipped = {}, defaultdict(float), [], set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_load_initial_conftests(self):  # before anything of ours is imported
        threading.settrace(self._on_call)
        sys.settrace(self._on_call)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self):
        sys.settrace(None)
        threading.settrace(None)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        known = item._fixtureinfo.name2fixturedefs
        self._fixtures[item.nodeid] = [_key(fixture) for name in item.fixturenames for fixture in known.get(name, ())]
        begin = _processor_seconds()
        with self._into(self._by_test[item.nodeid]):
            yield
        self._seconds[item.nodeid] = _processor_seconds() - begin

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        if fixturedef.scope == "function":
            yield
            return
        with self._into(self._by_fixture[_key(fixturedef)]):
            yield

    def pytest_runtest_logreport(self, report):
        if report.failed and report.nodeid not in self._failed:
            self._failed.append(report.nodeid)
        if report.skipped:
            self._skipped.add(report.nodeid)

    @property
    def result(self) -> dict:
        passed = [test for test in self._by_test if test not in self._skipped.union(self._failed)]
        return {
            "tests": [
                {"id": test, "seconds": round(self._seconds[test], 3), "lines": self._by_file(self._all_of(test))}
                for test in passed
            ],
            "imported": self._by_file(self._imported),
            "failed": self._failed,
        }

    def _all_of(self, test: str) -> set:
        return self._by_test[test].union(*(self._by_fixture[key] for key in self._fixtures[test]))

    def _by_file(self, lines: set) -> dict[str, list[int]]:
        result = defaultdict(list)
        for filename, line in sorted(lines):
            result[os.path.relpath(filename, self._root).replace(os.sep, "/")].append(line)
        return result

    @contextmanager
    def _into(self, lines: set):
        before, self._current = self._current, lines
        try:
            yield
        finally:
            self._current = before

    def _on_call(self, frame, event, argument):
        code = frame.f_code
        if code not in self._files:  # without links: the host imports the pack through one
            path = os.path.realpath(code.co_filename)
            self._files[code] = path if path.startswith(self._watched + os.sep) else None
        path = self._files[code]
        if path is None:
            return None
        of_module = not code.co_flags & inspect.CO_OPTIMIZED

        def on_line(frame, event, argument):
            if event == "line":
                (self._imported if of_module else self._current).add((path, frame.f_lineno))
            return on_line

        return on_line


def _processor_seconds() -> float:
    """Of this process and of those that it has started and waited for."""
    return sum(os.times()[:4])


def _key(fixture) -> str:
    return f"{fixture.baseid} {fixture.argname}"
