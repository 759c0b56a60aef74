"""What a run writes down of itself, and what is said where a snapshot is of another run."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from sara_core import DeltaError, TrainingError
from sara_core.data.denoising_loss import Sample
from sara_core.data.noise_levels import NoiseLevels
from sara_core.training import snapshot
from sara_core.training.optimizer_choice import chosen_optimizer
from sara_core.training.record import parts_of_a_run, resumed_state, selection_asked_for
from sara_core.training.run import Run, denoising_loss
from sara_core.training.words import Words
from tests.support.toy_runs import ToyNetwork, settings, toy_run

WORDS = Words(
    setting="--{}".format, other_run="the options are others", same_run="Give them again.", other_file="look elsewhere"
)


def test_a_snapshot_of_the_same_settings_is_resumed(tmp_path):
    chosen = settings(include=("attn",), adjust_at=[0.25, 0.5])
    snapshot.save(tmp_path / "run.safetensors", {"step": 3}, asdict(chosen))
    of_before = {"step": 3, "plan": [6], "adjust_at": (2, 3)}
    assert resumed_state(tmp_path / "run.safetensors", chosen) == of_before
    state = {"step": 3, "plan": [4, 6], "adjust_at": [1, 2]}
    snapshot.save(tmp_path / "run.safetensors", state, asdict(chosen))
    assert resumed_state(tmp_path / "run.safetensors", chosen) == state


def test_a_snapshot_of_other_images_is_refused_in_words(tmp_path):
    path = tmp_path / "run.safetensors"
    snapshot.save(path, {}, asdict(settings(data="1f")))
    with pytest.raises(TrainingError, match=r"\(data: other images or captions than in the snapshot\)\. Give them"):
        resumed_state(path, settings(data="2f"), WORDS)


def test_a_snapshot_of_other_settings_is_refused_with_all_that_differs(tmp_path):
    path = tmp_path / "run.safetensors"
    snapshot.save(path, {}, asdict(settings(batch_size=8, seed=1)))
    differing = r"\(batch_size: 8 in the snapshot, 2 now; seed: 1 in the snapshot, 0 now\)"
    with pytest.raises(TrainingError, match=f"^The run of run.safetensors cannot go on, because this .* {differing}"):
        resumed_state(path, settings())
    with pytest.raises(TrainingError, match=rf"because the options are others {differing}\. Give them again\.$"):
        resumed_state(path, settings(), WORDS)


def test_a_file_that_is_no_snapshot_is_refused_in_the_hosts_words(tmp_path):
    path = tmp_path / "delta.safetensors"
    toy_run().delta().save(path)
    with pytest.raises(Exception, match="this version can resume: look elsewhere\\.$"):
        resumed_state(path, settings(), WORDS)


def test_every_setting_but_the_steps_decides_whether_a_run_is_resumed(tmp_path):
    path = tmp_path / "run.safetensors"
    for name in asdict(settings()).keys() - {"steps"}:
        snapshot.save(path, {}, {**asdict(settings()), name: "other"})
        with pytest.raises(TrainingError, match=rf"\({name}: other .*in the snapshot"):
            resumed_state(path, settings())


@pytest.mark.parametrize("steps, done", [("other", 3), (0, 0), (None, 3), (6, "other"), (6, None), (6, -1)])
def test_steps_that_are_no_number_are_damage(tmp_path, steps, done):
    snapshot.save(tmp_path / "run.safetensors", {"step": done}, {**asdict(settings()), "steps": steps})
    with pytest.raises(DeltaError, match="saved state of a training is damaged: its number of steps"):
        resumed_state(tmp_path / "run.safetensors", settings())


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    snapshot.save(path, {"step": 5}, asdict(settings(steps=6)))
    assert resumed_state(path, settings(steps=5))["plan"] == [6]
    with pytest.raises(TrainingError, match="has done 5 steps already, and --steps is 4: set it to 5 or more"):
        resumed_state(path, settings(steps=4), WORDS)


@pytest.mark.parametrize("text, parts", [("0.5", [0.5]), ("0.6, 0.3", [0.3, 0.6]), ("", []), (" , ", [])])
def test_parts_of_a_run(text, parts):
    assert parts_of_a_run(text) == parts


@pytest.mark.parametrize("text", ["0", "1", "half", "-0.5", "0.2, 2", "nan"])
def test_parts_of_a_run_that_are_none(text):
    with pytest.raises(TrainingError, match=f"^--adjust_at is '{text}': it takes parts of the run between 0 and 1"):
        parts_of_a_run(text, WORDS)


def test_adjustments_are_after_whole_steps():
    assert settings(steps=8, adjust_at=[0.25, 0.6]).adjust_after_steps() == (2, 5)


def test_the_selection_that_is_asked_for():
    assert selection_asked_for("smallest", "count", 5, False, 7) == {"rule": "smallest", "count": 5}
    assert selection_asked_for("random", "density", 0.1, True, 7) == {
        "rule": "random", "density": 0.1, "per_layer": True, "seed": 7,
    }  # fmt: skip


def test_the_papers_rate_is_refused_for_sgd_and_a_rate_of_ones_own_is_taken():
    with pytest.raises(TrainingError, match="set --learning_rate for SGD"):
        chosen_optimizer(settings(optimizer="SGD", learning_rate=0.0), WORDS)
    kind, rate, options = chosen_optimizer(settings(optimizer="SGD", learning_rate=0.1, weight_decay=0.3))
    assert kind.__name__ == "SGD" and rate == 0.1 and options == {"momentum": 0.9, "weight_decay": 0.3}
    assert chosen_optimizer(settings(learning_rate=0.0)).lr is None


def test_every_setting_of_the_loop_reaches_it():
    run = toy_run(settings(
        grad_accumulation=3, max_grad_norm=0.7, schedule="cosine", warmup_steps=2, adjust_at=[0.5], low_rank_weight=0.1,
        seed=5,
    ))  # fmt: skip
    loop, low_rank = run.training.settings, run.training.low_rank
    assert (loop.steps, loop.accumulation, loop.max_grad_norm, loop.schedule, loop.warmup) == (6, 3, 0.7, "cosine", 2)
    assert loop.adjust_at == (3,) and loop.theta == run.selection.theta > 0
    assert low_rank.weight == 0.1 and low_rank.samples_per_step == 6 and low_rank.generator.initial_seed() == 5
    assert toy_run().training.low_rank is None


def test_every_setting_of_the_batches_reaches_them():
    chosen = settings(
        batch_size=3, seed=5, prior_weight=0.3, caption_dropout=0.2, noise_levels="logit-normal", noise_level_mean=0.4,
        noise_level_std=0.6, noise_from=0.2, noise_to=0.65, min_snr_gamma=7.0,
    )  # fmt: skip
    samples = [Sample(torch.zeros(4), {}, {})]
    batches = denoising_loss(chosen, ToyNetwork(None), samples, samples, own_part=reversed)
    assert (batches.prior_weight, batches.min_snr_gamma, batches.own_part) == (0.3, 7.0, reversed)
    for draws in (batches.draws, batches.class_draws):
        assert (draws.epochs.batch_size, draws.levels, draws.caption_dropout) == (3, range(2, 7), 0.2)
        assert draws.noise_levels == NoiseLevels("logit-normal", 0.4, 0.6)
    assert batches.draws.generator.initial_seed() == 5 != batches.class_draws.generator.initial_seed()


def test_what_a_run_left_out_of_a_damaged_base_is_in_its_report():
    selection = SimpleNamespace(count=7, theta=None, not_finite=1234)
    training = SimpleNamespace(step=3, adjustments=[], losses=[0.5, 0.25, 0.125])
    run = SimpleNamespace(
        selection=selection, training=training, learning_rate=1e-3, settings=SimpleNamespace(steps=3, adjust_at=()),
        held_out=None,
    )
    assert Run.report(run) == (
        "7 weights trained in 3 steps, learning rate 0.001; "
        "1,234 weights of the base are NaN or infinite and were left out"
    )
    selection.not_finite = 0
    assert "infinite" not in Run.report(run)
