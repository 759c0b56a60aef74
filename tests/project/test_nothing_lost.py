"""Between the last step of a training and the end of SaRA Save a delta or a snapshot is on the disk at every moment."""

import os
import shutil

import pytest
import torch

from sara_core import SparseDelta
from sara_core.commands.terminal import Terminal, own_snapshots, places
from sara_core.errors import SaRAError
from sara_core.files import atomic
from sara_core.training import snapshot
from sara_core.training.loop import Training
from sara_core.training.processes import Processes
from sara_core.training.session import TrainingSession
from tests.support import failing_disk
from tests.support.toy_runs import settings, toy_run
from tests.support.toy_training import train

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
DISTURBANCES = ["kill", "interrupt", "full", "full once"]
# Few layers: each tensor of a file is a step on the disk.
# Without the snapshot that a finished run keeps to be trained on from: here every file is to have its reason.
OPTIONS = {"steps": 3, "density": 2.0, "include": "time_embed.0", "keep_last_snapshot": False}


def same_entries(first, second) -> bool:
    return first.entries.keys() == second.entries.keys() and all(
        torch.equal(entry.indices, second.entries[name].indices)
        and torch.equal(entry.values, second.entries[name].values)
        for name, entry in first.entries.items()
    )


@pytest.mark.parametrize("disturbance", DISTURBANCES[:3])
def test_of_sara_train_and_sara_save(comfy, model, data, output, monkeypatch, disturbance):
    training, pack_atomic = comfy.pack_module("sara_core.training.loop"), comfy.pack_module("sara_core.files.atomic")
    delta_class = comfy.pack_module("sara_core").SparseDelta
    snapshots = comfy.pack_module("sara_core.training.snapshot")
    expected, _ = train(comfy, model, data, **OPTIONS)
    shutil.rmtree(output)
    (output / "sara").mkdir(parents=True)
    original, disks, left = training.Training.run, [], []

    def check(at):
        """Whatever has its name is whole, and there is the finished delta or the run of almost all steps."""
        deltas = list((output / "sara").rglob("*.safetensors"))
        assert all(same_entries(delta_class.load(path), expected) for path in deltas), at
        states = [snapshots.load(path)[0] for path in (output / "sara_snapshots").glob("*.safetensors")]
        assert deltas or [state["step"] for state in states][:1] >= [OPTIONS["steps"] - 1], f"nothing after {at}"
        left.append((len(deltas), len(states)))

    def run_and_fork(self, *arguments):
        losses = original(self, *arguments)
        disks.extend(filter(None, [failing_disk.children(pack_atomic, disturbance, output, check)]))
        return losses

    monkeypatch.setattr(training.Training, "run", run_and_fork)
    with failing_disk.end(disks):
        try:
            delta, _ = train(comfy, model, data, **OPTIONS)
            comfy.execute("SaRASave", delta=delta, filename_prefix="sara/lost")
        except (Exception, KeyboardInterrupt) as error:
            if not disks or not (isinstance(error, KeyboardInterrupt) or type(error).__name__ == "DeltaError"):
                raise
    assert len(left) > 20 and left[-1] == (1, 0)  # undisturbed, only what was saved is left
    if disturbance == "kill":  # before the copy, with it, without the snapshot, with the saved file
        assert list(dict.fromkeys(left[:-1])) == [(0, 1), (1, 1), (1, 0), (2, 0)]


def run_command(target):
    """The session of `python -m sara_core train`, about a small network."""
    alone = Processes(0, 1, torch.device("cpu"))
    run = toy_run(settings(steps=3))
    with own_snapshots(target, None, alone) as snapshots:
        return TrainingSession(run, places(target, snapshots, 500), Terminal(alone, "")).execute()


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_of_the_command_line(tmp_path, monkeypatch, disturbance):
    run_command(tmp_path / "expected.safetensors")
    expected = SparseDelta.load(tmp_path / "expected.safetensors")
    folder = tmp_path / "work"
    folder.mkdir()
    target, original, disks, left = folder / "out.safetensors", Training.run, [], []

    def check(at):
        states = [snapshot.load(path)[0] for path in folder.rglob("*_step*.safetensors")]
        assert not target.exists() or same_entries(SparseDelta.load(target), expected), at
        assert target.exists() or [state["step"] for state in states][:1] >= [2], f"nothing after {at}"
        left.append((target.exists(), len(states)))

    def run_and_fork(self, *arguments):
        losses = original(self, *arguments)
        disks.extend(filter(None, [failing_disk.children(atomic, disturbance, folder, check)]))
        return losses

    monkeypatch.setattr(Training, "run", run_and_fork)
    with failing_disk.end(disks):
        try:
            run_command(target)
        except (SaRAError, KeyboardInterrupt):
            if not disks:
                raise
    assert len(left) > 10 and left[-1] == (True, 0)
