"""One training session for every host: how it ends and what it leaves, what it says, and going on from a snapshot."""

import dataclasses
import itertools
import json
import math
import weakref
from types import SimpleNamespace

import pytest
import torch

from sara_core import DeltaError, SparseDelta, TrainingError
from sara_core.data.denoising_loss import Sample
from sara_core.data.held_out import HeldOut
from sara_core.training import session as training_session
from sara_core.training.host import StepDone
from sara_core.training.processes import Processes
from sara_core.training.record import resumed_state
from sara_core.training.session import TrainingSession
from tests.support.toy_runs import SIZE, Listening, places, settings, toy_run, toy_session


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def same_delta(first, second):
    return first.metadata == second.metadata and all(
        torch.equal(entry.indices, second.entries[name].indices)
        and torch.equal(entry.values, second.entries[name].values)
        for name, entry in first.entries.items()
    )


def failing(*_):
    raise DeltaError("'x' could not be saved: the disk is full.")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What a run gives that nothing happens to."""
    return toy_session(tmp_path_factory.mktemp("straight")).execute()


def test_a_run_to_its_end_leaves_the_delta_alone_and_says_what_it_did(tmp_path, straight):
    host = Listening()
    run = toy_run()
    delta = toy_session(tmp_path, run, host, every=2).execute()
    assert same_delta(delta, straight)
    assert files(tmp_path) == ["finished.safetensors"]
    saved = SparseDelta.load(tmp_path / "finished.safetensors")
    assert saved.metadata.pop("sara.version") == "1" and same_delta(saved, delta)
    assert [step.number for step in host.steps] == [1, 2, 3, 4, 5, 6] and host.ended == []
    assert str(host.steps[0]) == f"step 1 of 6, loss {host.steps[0].loss:.4f}"
    report, = host.reports
    assert report.startswith(f"{delta.nnz} weights trained in 6 steps, learning rate 0.01; ")
    theta, still = run.selection.theta, run.store.ineffective(run.selection.theta) / delta.nnz
    assert "were below θ after step 3; " in report and 0 < still < 1
    assert report.endswith(f"; {still:.1%} are below θ = {theta:.3g} at the end")


def test_the_time_that_is_left():
    assert StepDone(1, 10, 0.5, 1.0).time_left == "0:09 left"
    assert StepDone(1, 3724, 0.5, 1.0).time_left == "1:02:03 left"


def test_the_delta_says_how_it_was_made(straight):
    said = json.loads(straight.metadata["sara.training"])
    expected = {**json.loads(json.dumps(vars(settings()))), "learning_rate": 1e-2, "steps": 6, "images": 3}
    assert said == expected and list(said) == list(expected)
    selected = json.loads(straight.metadata["sara.selection"])
    assert selected["rule"] == "smallest" and selected["elements"] == straight.nnz and selected["theta"] > 0
    assert straight.metadata["sara.base_name"] == "toy" and len(straight.metadata["sara.base"]) == 32


def test_a_stop_keeps_the_delta_and_a_snapshot_that_goes_on_bit_for_bit(tmp_path, straight, monkeypatch):
    host = Listening(stop_after=4)
    with pytest.raises(TrainingError) as stopped:
        toy_session(tmp_path, host=host).execute()
    snapshot = tmp_path / "snapshots" / "run_step0000004.safetensors"
    kept = f"What was trained in 4 steps is in {tmp_path / 'stopped.safetensors'}. To go on with it, resume {snapshot}."
    assert str(stopped.value) == f"Stopped after step 4 of 6. {kept}"
    assert host.ended == [(kept, True)] and host.reports == []
    assert files(tmp_path) == ["snapshots/run_step0000004.safetensors", "stopped.safetensors"]
    assert json.loads(SparseDelta.load(tmp_path / "stopped.safetensors").metadata["sara.training"])["steps"] == 4
    host = Listening()
    session = toy_session(tmp_path, host=host)
    session.resume(resumed_state(snapshot, settings()))
    clock = itertools.count(100, 10)
    monkeypatch.setattr(training_session, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert same_delta(session.execute(), straight) and len(session.training.losses) == 6
    assert [(step.number, step.seconds_per_step) for step in host.steps] == [(5, 10), (6, 10)]
    assert files(tmp_path) == ["finished.safetensors", "stopped.safetensors"]


def test_a_stop_at_the_last_step_stops_nothing(tmp_path, straight):
    assert same_delta(toy_session(tmp_path, host=Listening(stop_after=6)).execute(), straight)


class Cancel(BaseException):
    """A host's way to end a run in the middle of a step."""


def test_what_a_host_raises_is_raised_as_it_came_and_the_run_is_kept(tmp_path, straight):
    def cancel(forwards):
        if forwards == 4:
            raise Cancel

    host = Listening()
    with pytest.raises(Cancel):
        toy_session(tmp_path, toy_run(after_losses=cancel), host).execute()
    (kept, is_said), = host.ended
    assert "in 3 steps is in" in kept and not is_said
    session = toy_session(tmp_path)
    session.resume(resumed_state(tmp_path / "snapshots" / "run_step0000003.safetensors", settings()))
    assert same_delta(session.execute(), straight)


def test_the_host_may_end_it_before_each_forward(tmp_path):
    class Impatient(Listening):
        def check_interrupt(self):
            if len(self.steps) == 2:
                raise Cancel

    host = Impatient()
    with pytest.raises(Cancel):
        toy_session(tmp_path, host=host).execute()
    assert [step.number for step in host.steps] == [1, 2]


def test_snapshots_are_written_on_the_way_and_the_last_ones_kept(tmp_path):
    with pytest.raises(TrainingError):
        toy_session(tmp_path, host=Listening(stop_after=5), every=1).execute()
    assert files(tmp_path / "snapshots") == ["run_step0000004.safetensors", "run_step0000005.safetensors"]


def test_a_snapshot_that_cannot_be_written_is_said_and_ends_nothing(tmp_path, straight):
    host = Listening()
    session = toy_session(tmp_path, host=host, every=2)
    session.places.snapshots.save = failing
    assert same_delta(session.execute(), straight)
    said = "Training goes on without a snapshot of step {}. 'x' could not be saved: the disk is full."
    assert host.shown_warnings == [said.format(2), said.format(4), said.format(5)]
    assert host.warnings == {"snapshots": said.format(5)}


@pytest.mark.parametrize("snapshot_fails, delta_fails", [(True, False), (False, True), (True, True)])
def test_delta_and_snapshot_are_kept_each_on_its_own(tmp_path, snapshot_fails, delta_fails):
    session = toy_session(tmp_path, host=Listening(stop_after=2), **({"save_stopped": failing} if delta_fails else {}))
    if snapshot_fails:
        session.places.snapshots.save = failing
    with pytest.raises(TrainingError) as stopped:
        session.execute()
    full, text = "'x' could not be saved: the disk is full.", str(stopped.value)
    assert (f"could not be saved as a delta. {full}" in text) is delta_fails
    assert (f"There is no snapshot of it. {full}" in text) is snapshot_fails
    assert ("stopped.safetensors" in files(tmp_path)) is not delta_fails
    assert ("snapshots/run_step0000002.safetensors" in files(tmp_path)) is not snapshot_fails


def test_a_run_without_a_step_has_nothing_to_keep(tmp_path):
    def fail(forwards):
        raise ZeroDivisionError

    host = Listening()
    with pytest.raises(ZeroDivisionError):
        toy_session(tmp_path, toy_run(after_losses=fail), host).execute()
    assert host.ended == [("No step was completed, so there is nothing to keep.", False)] and files(tmp_path) == []


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("CUDA out of memory.")])
def test_memory_that_runs_out_is_said_with_what_is_kept_and_what_helps(tmp_path, straight, error):
    def run_out(forwards):
        if forwards == 3:
            raise error

    with pytest.raises(TrainingError) as raised:
        toy_session(tmp_path, toy_run(after_losses=run_out)).execute()
    text = str(raised.value)
    assert text.startswith("Memory ran out at step 3. What was trained in 2 steps is in ")
    assert text.endswith(" Train on smaller images, or fewer weights.")
    session = toy_session(tmp_path)
    session.resume(resumed_state(tmp_path / "snapshots" / "run_step0000002.safetensors", settings()))
    assert same_delta(session.execute(), straight)


def test_a_run_that_diverged_leaves_its_last_good_values_and_no_snapshot(tmp_path):
    with pytest.raises(TrainingError, match="3. time in a row.*What was trained in 4 steps is in") as raised:
        toy_session(tmp_path, toy_run(after_losses=lambda forwards: math.nan if forwards > 2 else None)).execute()
    assert "resume" not in str(raised.value) and files(tmp_path) == ["stopped.safetensors"]


def test_skipped_steps_are_in_the_report(tmp_path):
    host = Listening()
    run = toy_run(after_losses=lambda forwards: math.nan if forwards == 3 else None)
    toy_session(tmp_path, run, host).execute()
    assert host.reports[0].endswith("1 steps were skipped because they gave no finite loss or gradient")


def test_a_finished_delta_that_must_be_saved_and_cannot_be_has_ended_early(tmp_path):
    with pytest.raises(DeltaError, match="the disk is full. What was trained in 6 steps is in .*resume .*0000006"):
        toy_session(tmp_path, every=3, save_finished=failing).execute()
    assert files(tmp_path) == [
        "snapshots/run_step0000003.safetensors", "snapshots/run_step0000006.safetensors", "stopped.safetensors",
    ]  # fmt: skip


def test_a_finished_delta_that_is_handed_on_may_be_without_a_file_but_not_without_a_warning(tmp_path, straight):
    host, without_file = Listening(), []
    delta = toy_session(tmp_path, host=host, every=3, hands_on=without_file, save_finished=failing).execute()
    assert same_delta(delta, straight) and without_file == [delta] and host.ended == [] and len(host.reports) == 1
    last = tmp_path / "snapshots" / "run_step0000006.safetensors"
    assert host.shown_warnings == [
        "The finished delta could not be kept on the disk: save it now. Should that fail, resume "
        f"{last}. 'x' could not be saved: the disk is full."
    ]
    assert files(tmp_path)[-1] == "snapshots/run_step0000006.safetensors"


def test_without_any_file_that_is_said_too(tmp_path):
    host = Listening()
    session = toy_session(tmp_path, host=host, hands_on=[], save_finished=failing)
    session.places.snapshots.save = failing
    session.execute()
    assert "save it now. There is no snapshot of it. 'x'" in host.shown_warnings[0]


@pytest.mark.parametrize("hands_on", [None, []])
def test_the_snapshots_go_only_when_the_delta_is_on_the_disk(tmp_path, hands_on):
    at_saving = []

    def save(delta):
        at_saving.extend(files(tmp_path))

    toy_session(tmp_path, every=4, hands_on=hands_on, save_finished=save).execute()
    assert at_saving == ["snapshots/run_step0000004.safetensors"] and files(tmp_path) == []


def test_of_several_processes_the_others_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Processes, "any", lambda self, here: here)
    second = Processes(1, 2, torch.device("cpu"))
    assert TrainingSession(toy_run(), places(tmp_path, every=1), Listening(), second).execute() is None
    with pytest.raises(TrainingError, match="What was trained is kept by the first process."):
        TrainingSession(toy_run(), places(tmp_path, every=1), Listening(stop_after=3), second).execute()
    assert files(tmp_path) == []


def test_a_stop_in_any_process_stops_all(tmp_path, monkeypatch):
    monkeypatch.setattr(Processes, "any", lambda self, here: True)
    with pytest.raises(TrainingError, match="Stopped after step 1 of 6"):
        toy_session(tmp_path).execute()


def test_a_rate_of_the_papers_that_learns_nothing_is_noted(tmp_path):
    """As the toy's is, whose weights are large."""
    noted, silent = Listening(), Listening()
    toy_session(tmp_path, toy_run(settings(learning_rate=0.0)), noted).execute()
    toy_session(tmp_path, toy_run(settings(learning_rate=1e-9)), silent).execute()
    assert "too low to learn anything. Lower the density, or set learning_rate (1e-4 to 1e-3)." in noted.logged[0]
    assert silent.logged == []


def test_what_was_saved_on_the_way_stays_as_it_was(tmp_path):
    states = []

    class Looking(Listening):
        def after_step(self, step):
            super().after_step(step)
            state = session.training.state()["last_good"]
            states.append((state, state.clone()))

    session = toy_session(tmp_path, host=Looking())
    session.execute()
    assert len(states) == 6 and all(torch.equal(state, then) for state, then in states)
    assert not torch.equal(states[0][0], states[-1][0])


def test_the_activations_of_an_error_are_gone_before_anything_is_saved(tmp_path):
    activations = []

    def run_out(forwards):
        activation = torch.zeros(3)
        activations.append(weakref.ref(activation))
        if forwards == 3:
            raise MemoryError("Memory ran out")

    session = toy_session(tmp_path, toy_run(after_losses=run_out))
    alive = []
    save = session.places.save_stopped

    def saved(delta):
        alive.append([reference() is not None for reference in activations])
        return save(delta)

    session.places = dataclasses.replace(session.places, save_stopped=saved)
    with pytest.raises((MemoryError, TrainingError)):
        session.execute()
    assert alive == [[False, False, False]]


def test_held_out_pictures_are_measured_before_the_first_step_and_after_each_that_is_due(tmp_path):
    class Noting(Listening):
        def __init__(self):
            super().__init__()
            self.held_out = []

        def show_held_out(self, step, loss):
            self.held_out.append((step, loss))

    host, run = Noting(), toy_run()
    run.held_out = HeldOut(run.training.batches.network, [Sample(torch.ones(SIZE), {})], range(10), seed=0)
    toy_session(tmp_path, run, host).execute()
    assert [step for step, _ in host.held_out] == list(range(7))
    assert host.held_out == run.held_out.losses and len({loss for _, loss in host.held_out}) == 7
