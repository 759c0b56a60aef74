"""A plugin of pytest that writes down how long each test took, one JSON object a line: see read_times in budget.py.

    python -m pytest -p devtools.suite.recording        with SARA_TEST_TIMES naming the file, which is appended to

Of a test belongs what is prepared for it and torn down after it: a server that several tests share is the first one's.
"""

import json
import os
from pathlib import Path

import pytest

from .budget import TIMES

_BEGUN = pytest.StashKey[float]()


def pytest_configure(config):
    # Workers of xdist send their reports to the process that started them.
    if os.environ.get(TIMES) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Writer(Path(os.environ[TIMES]), config))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.stash[_BEGUN] = _processor_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "teardown":
        report.processor_seconds = _processor_seconds() - item.stash[_BEGUN]
    return report


class _Writer:
    def __init__(self, path: Path, config: pytest.Config):
        self._path, self._config = path, config
        self._seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report):
        seconds = self._seconds.get(report.nodeid, 0.0) + report.duration
        self._seconds[report.nodeid] = seconds
        if report.when == "teardown":
            self._write(test=report.nodeid, seconds=seconds, processor=report.processor_seconds, at_once=self._at_once)

    @property
    def _at_once(self) -> int:
        """How many tests run at a time."""
        return getattr(self._config.option, "numprocesses", None) or 1

    def _write(self, **line) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _processor_seconds() -> float:
    """Of this process and of those that it started and that have ended; the latter not on Windows, which keeps none."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
