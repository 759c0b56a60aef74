"""`python -m sara_core train` leaves other runs' snapshots alone, also those of the same OUT."""

from pathlib import Path

import pytest
import torch

from sara_core.commands.terminal import own_snapshots
from sara_core.training import snapshot
from sara_core.training.processes import Processes
from tests.project.test_nothing_lost import run_command

ALONE = Processes(0, 1, torch.device("cpu"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out.safetensors"


def leave_snapshot(target, resumed=None):
    """What a run leaves that was stopped; returns the snapshot."""
    with own_snapshots(target, resumed, ALONE) as snapshots:
        return snapshots.save(7, {"step": 7}, {})


def test_a_finished_run_leaves_only_out(target):
    run_command(target)
    assert names(target.parent) == [target.name]


def test_a_new_run_leaves_the_snapshots_of_a_stopped_one(target):
    stopped = leave_snapshot(target)
    before = stopped.read_bytes()
    run_command(target)
    assert names(stopped.parent) == [stopped.name] and stopped.read_bytes() == before


def test_a_resumed_run_goes_on_under_its_name_unless_that_lives(target):
    stopped = leave_snapshot(target)
    with own_snapshots(target, str(stopped), ALONE) as first, own_snapshots(target, str(stopped), ALONE) as second:
        assert (first.run, second.run) == ("out", "out_2")
    copy = target.with_name("copy_step0000007.safetensors")
    copy.write_bytes(stopped.read_bytes())
    with own_snapshots(target, str(copy), ALONE) as elsewhere:
        assert elsewhere.run == "out_2"


def test_as_many_are_kept_as_are_asked_for(target):
    with own_snapshots(target, None, ALONE, 3) as snapshots:
        for step in range(1, 6):
            snapshots.save(step, {"step": step}, {})
    assert names(target.parent / "out_snapshots") == [f"out_step000000{step}.safetensors" for step in (3, 4, 5)]


def test_of_several_processes_the_others_take_no_name(target):
    with own_snapshots(target, None, ALONE), own_snapshots(target, None, Processes(1, 2, ALONE.device)) as other:
        assert isinstance(other, snapshot.RunSnapshots)
        assert names(Path(other.folder)) == [".out.lock"]
    assert names(target.parent) == []
