"""Snapshots that `train` wrote before it had all settings of a run: they are resumed as if nothing had changed."""

from dataclasses import asdict

import pytest

from sara_core import DeltaError, TrainingError
from sara_core.commands.terminal import WORDS
from sara_core.training import snapshot
from sara_core.training.record import resumed_state
from tests.core.commands.test_train import settings

THEN = {
    "selection": {"density": 0.05}, "steps": 7, "batch_size": 3, "accumulation": 2, "learning_rate": None,
    "low_rank_weight": 0.1, "adjust_at": 0.5, "resolution": 32, "dtype": "float32", "seed": 3, "data": "digest",
}  # fmt: skip
DRAWN = {"samples": 4, "queue": [1, 2], "generator": 0}


def now(**changes):
    usual = {"steps": 7, "batch_size": 3, "grad_accumulation": 2, "low_rank_weight": 0.1, "adjust_at": [0.5],
             "learning_rate": 0.0, "data": "digest"}  # fmt: skip
    return settings(**{**usual, **changes})


def resumed(folder, then, chosen, state=None):
    path = folder / "old.safetensors"
    snapshot.save(path, {"step": 3, "batches": DRAWN} if state is None else state, then)
    return resumed_state(path, chosen, WORDS)


def test_state_and_settings_are_those_of_today(tmp_path):
    batches = {"images": DRAWN, "class_images": None}
    assert resumed(tmp_path, THEN, now()) == {"step": 3, "batches": batches, "plan": [7], "adjust_at": (4,)}
    others = {**THEN, "selection": {"threshold": 0.01}, "learning_rate": 0.1, "adjust_at": 0.0}
    chosen = now(selection={"rule": "smallest", "threshold": 0.01}, learning_rate=0.1, adjust_at=[])
    assert resumed(tmp_path, others, chosen)["batches"] == batches


@pytest.mark.parametrize("change", [
    {"grad_accumulation": 1}, {"optimizer": "Adam"}, {"schedule": "cosine"}, {"adjust_at": [0.4]},
    {"selection": {"rule": "largest", "density": 0.05}}, {"min_snr_gamma": 5.0}, {"max_grad_norm": 0.5},
])  # fmt: skip
def test_a_run_of_other_settings_is_refused(tmp_path, change):
    name, = change
    with pytest.raises(TrainingError, match=rf"\({name}: "):
        resumed(tmp_path, THEN, now(**change))


def test_a_snapshot_of_today_is_as_it_is(tmp_path):
    state = {"step": 3, "batches": {"images": DRAWN, "class_images": None}, "plan": [5, 7], "adjust_at": [2]}
    assert resumed(tmp_path, asdict(now()), now(), state) == state


def test_more_steps_than_then_are_no_other_run_and_fewer_than_done_are_refused(tmp_path):
    assert resumed(tmp_path, THEN, now(steps=20))["plan"] == [7]
    assert resumed(tmp_path, THEN, now(steps=3))["adjust_at"] == (4,)
    with pytest.raises(TrainingError, match="has done 3 steps already, and --steps is 2: set it to 3 or more"):
        resumed(tmp_path, THEN, now(steps=2))


@pytest.mark.parametrize("change, state", [
    ({"selection": [1]}, None), ({"selection": None}, None), ({}, {"step": 3}),
])  # fmt: skip
def test_a_damaged_one_is_refused_as_damaged(tmp_path, change, state):
    with pytest.raises(DeltaError, match="is damaged"):
        resumed(tmp_path, {**THEN, **change}, now(), state)
    with pytest.raises(DeltaError, match="lacks adjust_at"):
        resumed(tmp_path, {name: value for name, value in THEN.items() if name != "adjust_at"}, now(), state)


@pytest.mark.parametrize("changes, resumes", [({}, True), ({"noise_from": 0.1}, False), ({"noise_to": 0.5}, False)])
def test_one_from_before_noise_ranges_had_all_levels(tmp_path, changes, resumes):
    state = {"step": 3, "batches": {"images": DRAWN, "class_images": None}, "plan": [7], "adjust_at": []}
    then = {name: value for name, value in asdict(now()).items() if name not in ("noise_from", "noise_to")}
    if resumes:
        assert resumed(tmp_path, then, now(**changes), state) == state
    else:
        with pytest.raises(TrainingError, match=next(iter(changes))):
            resumed(tmp_path, then, now(**changes), state)
