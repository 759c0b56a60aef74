"""Runs that end at another step than was planned: finished before it, trained on beyond it, saved on the way."""

import json

import pytest
import torch

from sara_core import DeltaError, SparseDelta, TrainingError
from sara_core.training.record import resumed_state
from sara_core.training.schedule import planned_rate_factor, rate_factor
from tests.core.training.test_session import failing, files, same_delta
from tests.support.toy_runs import Listening, settings, toy_run, toy_session

FALLING = {"schedule": "cosine", "warmup_steps": 2, "adjust_at": [0.5]}


@pytest.fixture
def elsewhere(tmp_path_factory):
    """A second folder, for the run to compare with."""
    return tmp_path_factory.mktemp("elsewhere")


def last_snapshot(folder):
    return sorted((folder / "snapshots").glob("*"))[-1]


def resumed(folder, chosen, host=None, **places):
    session = toy_session(folder, toy_run(chosen), host or Listening(), **places)
    session.resume(resumed_state(last_snapshot(folder), chosen))
    return session


def said(delta):
    return json.loads(delta.metadata["sara.training"])


@pytest.mark.parametrize("how", [{}, FALLING])
def test_a_run_that_is_trained_on_is_the_first_one_up_to_its_end(tmp_path, elsewhere, how):
    straight = toy_session(elsewhere, toy_run(settings(**how)))
    straight.execute()
    with pytest.raises(TrainingError):
        toy_session(tmp_path, toy_run(settings(**how)), Listening(stop_after=2)).execute()
    longer = resumed(tmp_path, settings(**how, steps=10))
    values = []
    longer.host.after_step = lambda step: values.append(longer.run.store.delta())
    delta = longer.execute()
    training = longer.training
    assert training.plan == (6, 10) and len(training.losses) == 10
    assert training.losses[:6] == straight.training.losses
    assert training.adjustments == straight.training.adjustments and training.adjustments[0][0] == 3
    for name, entry in straight.run.store.delta().entries.items():
        assert torch.equal(entry.values, values[3].entries[name].values)  # after step 6: it went on from step 2
        assert not torch.equal(entry.values, delta.entries[name].values)
    assert said(delta)["steps"] == 10 and said(delta)["planned_steps"] == [6, 10]


@pytest.mark.parametrize("how", [{}, FALLING])
def test_a_run_can_be_trained_on_again_and_again_and_stopped_in_between(tmp_path, elsewhere, how):
    """Finished at 6, trained on to 9, that stopped at 8, and gone on with to 12: as without the stop."""
    def finish(steps, host=None):
        return resumed(tmp_path, settings(**how, steps=steps), host, keeps_last_snapshot=True)

    toy_session(tmp_path, toy_run(settings(**how)), keeps_last_snapshot=True).execute()
    with pytest.raises(TrainingError):
        finish(9, Listening(stop_after=8)).execute()
    session = finish(12)
    session.execute()
    assert session.training.plan == (6, 9, 12)

    toy_session(elsewhere, toy_run(settings(**how)), keeps_last_snapshot=True).execute()
    for steps in (9, 12):
        straight = resumed(elsewhere, settings(**how, steps=steps), keeps_last_snapshot=True)
        straight.execute()
    assert session.training.losses == straight.training.losses
    assert torch.equal(session.run.store.values, straight.run.store.values)


def test_a_run_of_fewer_steps_ends_as_the_planned_one_would_have_been_there(tmp_path, elsewhere):
    with pytest.raises(TrainingError):
        toy_session(tmp_path, toy_run(settings(**FALLING)), Listening(stop_after=2)).execute()
    shorter = resumed(tmp_path, settings(**FALLING, steps=4))
    delta = shorter.execute()
    straight = toy_session(elsewhere, toy_run(settings(**FALLING)), Listening(finish_after=4))
    assert same_delta(delta, straight.execute()) and said(delta)["planned_steps"] == [6]
    assert shorter.training.losses == straight.training.losses


def test_a_snapshot_of_the_last_step_gives_the_delta_again(tmp_path):
    first = toy_session(tmp_path, keeps_last_snapshot=True).execute()
    assert same_delta(resumed(tmp_path, settings()).execute(), first)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_the_rate_falls_anew_in_each_part_that_was_added(schedule):
    rates = [planned_rate_factor(schedule, step, (6, 10, 11), 2) for step in range(11)]
    assert rates[:6] == [rate_factor(schedule, step, 6, 2) for step in range(6)]
    assert rates[6:10] == [rate_factor(schedule, step, 4) for step in range(4)]
    assert rates[10] == rates[6] == 1.0
    assert (rates[9] < 0.5) is (schedule != "constant")


def test_a_run_that_is_finished_early_ends_as_if_that_had_been_the_plan(tmp_path, elsewhere):
    host = Listening(finish_after=4)
    delta = toy_session(tmp_path, host=host, every=3).execute()
    assert said(delta)["steps"] == 4 and said(delta)["planned_steps"] == [6]
    assert SparseDelta.load(tmp_path / "finished.safetensors").metadata["sara.training"] == (
        delta.metadata["sara.training"]
    )
    assert "trained in 4 of 6 steps" in host.reports[0] and host.ended == []
    assert files(tmp_path) == ["finished.safetensors", "snapshots/run_step0000004.safetensors"]
    assert host.snapshots == [last_snapshot(tmp_path).with_name("run_step0000003.safetensors"), last_snapshot(tmp_path)]
    straight = toy_session(elsewhere).execute()
    assert same_delta(resumed(tmp_path, settings()).execute(), straight)


def test_to_finish_after_the_last_step_is_to_finish(tmp_path, elsewhere):
    straight = toy_session(elsewhere).execute()
    assert same_delta(toy_session(tmp_path, host=Listening(finish_after=6)).execute(), straight)
    assert files(tmp_path) == ["finished.safetensors"]


@pytest.mark.parametrize("hands_on", [None, []])
def test_a_last_snapshot_is_kept_where_it_is_wanted(tmp_path, hands_on):
    toy_session(tmp_path, every=2, hands_on=hands_on, keeps_last_snapshot=True).execute()
    assert files(tmp_path) == ["finished.safetensors", "snapshots/run_step0000006.safetensors"]


def test_a_last_snapshot_that_cannot_be_written_is_said(tmp_path):
    host = Listening()
    session = toy_session(tmp_path, host=host, keeps_last_snapshot=True)
    session.places.snapshots.save = failing
    session.execute()
    assert host.shown_warnings == ["There is no snapshot of step 6. 'x' could not be saved: the disk is full."]
    assert files(tmp_path) == ["finished.safetensors"]


def test_what_is_saved_on_request_is_on_the_disk_and_the_run_goes_on(tmp_path, elsewhere):
    def save(delta):
        delta.save(tmp_path / "so_far.safetensors", overwrite=False)
        return tmp_path / "so_far.safetensors"

    straight = toy_session(elsewhere).execute()
    host = Listening(save_after=4)
    assert same_delta(toy_session(tmp_path, host=host, save_on_request=save).execute(), straight)
    assert said(SparseDelta.load(tmp_path / "so_far.safetensors"))["steps"] == 4
    snapshot, = host.snapshots
    assert snapshot.name == "run_step0000004.safetensors"
    assert host.saved == [
        f"What was trained in 4 steps is in {tmp_path / 'so_far.safetensors'}. To go on with it, resume {snapshot}."
    ]


def test_a_request_that_cannot_be_met_is_said_and_ends_nothing(tmp_path, elsewhere):
    host = Listening(save_after=4)
    session = toy_session(tmp_path, host=host, save_on_request=failing)
    session.places.snapshots.save = failing
    assert same_delta(session.execute(), toy_session(elsewhere).execute())
    said, = host.saved
    assert "could not be saved as a delta" in said and "There is no snapshot of it" in said


@pytest.mark.parametrize("change", [
    {"plan": []}, {"plan": [6, 6]}, {"plan": [1]}, {"plan": "6"}, {"plan": [6.5]}, {"plan": [1 << 50]},
    {"adjust_at": [-1]}, {"adjust_at": 3}, {"adjust_at": [True]},
])  # fmt: skip
def test_a_damaged_plan_is_refused(change):
    run = toy_run()
    run.training.run(on_micro_batch=lambda: None)
    with pytest.raises(DeltaError, match="is damaged"):
        toy_run().training.check_state({**run.training.state(), **change})
