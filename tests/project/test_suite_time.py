"""What `python dev.py test` says of the time that the tests take; none of it makes a run fail."""

import os
import subprocess
import sys

import pytest

from devtools.comfyui.install import ROOT
from devtools.suite.budget import BUDGET, TIMES, TimeOfTest, read_times, summary

TESTS = """
import subprocess, sys, time
import pytest

def work():
    begun = time.process_time()
    while time.process_time() < begun + 0.2:
        pass

@pytest.fixture
def slow_in_the_end():
    yield
    work()

def test_working():
    work()

def test_starting_a_process():
    subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.2: pass"], check=True)

def test_torn_down(slow_in_the_end):
    pass

@pytest.mark.skip
def test_skipped():
    pass

def test_failing():
    assert 0
"""


def recorded(folder, *options):
    """The tests that a run of pytest over TESTS has written down, by name."""
    (folder / "test_these.py").write_text(TESTS)
    times = folder / "times"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "devtools.suite.recording", "--rootdir", str(folder)]
    done = subprocess.run(
        [*command, *options, str(folder / "test_these.py")], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, TIMES: str(times)},
    )  # fmt: skip
    assert "1 failed, 3 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
    found = read_times(times)
    assert len(found) == 5
    return {time.test.rpartition("::")[2]: time for time in found}


@pytest.mark.parametrize("options, at_once", [([], 1), (["-n", "2"], 2)])
def test_every_test_is_written_down_once(tmp_path, options, at_once):
    """With what is torn down after it, and with the processes that it starts."""
    times = recorded(tmp_path, *options)
    busy = {"test_working", "test_starting_a_process", "test_torn_down"}
    assert times.keys() == busy | {"test_skipped", "test_failing"}
    assert all(times[name].processor >= 0.15 for name in busy)  # 0.2 s, which systems count in ticks
    assert times["test_torn_down"].seconds > times["test_skipped"].seconds
    assert {time.at_once for time in times.values()} == {at_once}


def test_without_a_file_to_write_to_nothing_is_written(tmp_path):
    assert read_times(tmp_path / "none") == [] and summary([]) == ""


def minutes(test, took, at_once=1):
    return TimeOfTest(test, 60.0 * took, 30.0 * took, at_once)


def row(text, name):
    return next(line.split()[1:] for line in text.splitlines() if line.startswith(name))


def test_slices_are_the_folders_of_the_tests():
    text = summary([
        minutes("tests/core/names/test_a.py::test", 1), minutes("tests/core/test_b.py::test", 2),
        minutes("tests/nodes/test_a.py::test", 4), minutes("tests/project/test_core.py::test[tests/core/x]", 8, 4),
    ])  # fmt: skip
    assert row(text, "core") == ["3.0", str(BUDGET["core"]), "1.5"] and row(text, "nodes")[0] == "4.0"
    assert row(text, "browser")[0] == "0.0" and row(text, "other") == ["2.0", str(BUDGET["other"]), "4.0"]
    assert row(text, "together") == ["9.0", "25", "7.5"] and "OVER" not in text


def test_the_slowest_are_named_in_their_order():
    text = summary([minutes(f"tests/core/test_a.py::test_{number}", number / 100) for number in range(30)])
    named = [int(line.rpartition("_")[2]) for line in text.splitlines() if "test_a" in line]
    assert named == list(range(29, 19, -1))


def test_a_slice_over_its_budget_is_said_loudly():
    times = [minutes("tests/nodes/test_a.py::test", BUDGET["nodes"] + 0.5), minutes("tests/core/test_a.py::test", 1)]
    text = summary(times)
    assert text.splitlines()[-1].startswith(f"!!! OVER THE BUDGET: nodes took {BUDGET['nodes']}.5 of its")
