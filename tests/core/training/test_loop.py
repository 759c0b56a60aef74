"""The training loop: what it reports, what it averages, and what is left when it is stopped."""

import math

import pytest
import torch
from torch import nn

from sara_core import TrainingError
from sara_core.training import loop as training_module
from sara_core.training.loop import Training, TrainingSettings
from sara_core.training.optimizer import make_inner
from tests.support.small_models import (
    MaskedTraining, attached, every_bit, loss_of, relative_error, repeatable, same_bits, small_batches, small_net,
)  # fmt: skip


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


class Stopped(Exception):
    """What a Cancel raises; the loop knows nothing of it."""


class Run:
    """A model, its store and optimizer, and the losses of small_batches one after the other."""

    def __init__(self, batches=None, optimizer=torch.optim.AdamW, **options):
        self.model = small_net()
        self.store = attached(self.model)
        self.optimizer = make_inner(optimizer, self.store.values, 0.002, 1e-2, options)
        self.batches = iter(batches if batches is not None else small_batches(20))
        self.reference = MaskedTraining(
            small_net(), self.store.support, optimizer, **{"lr": 1e-2, "weight_decay": 0.0, **options}
        )

    def loss(self):
        return loss_of(self.model, next(self.batches))

    def train(self, steps, loss=None, accumulation=1, max_grad_norm=0.0, patience=1, scaler=None, **callbacks):
        settings = TrainingSettings(steps, accumulation, max_grad_norm, patience=patience)
        training = Training(self.store, self.optimizer, loss or self.loss, settings, scaler=scaler)
        return training.run(**callbacks)

    def snapshot(self):
        return self.store.values.detach().clone(), every_bit(self.model)


def same_snapshot(first, second):
    return torch.equal(first[0], second[0]) and same_bits(first[1], second[1])


def test_losses_and_values_are_those_of_the_obvious_loop():
    run = Run()
    losses = run.train(6)
    for batch, loss in zip(small_batches(6), losses, strict=True):
        expected = loss_of(run.reference.model, batch)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        expected.backward()
        run.reference.step()
    assert relative_error(run.store.values.detach(), run.reference.delta.detach()) <= 1e-5


def test_accumulation_averages_the_micro_batches():
    run = Run()
    losses = run.train(3, accumulation=4)
    batches = iter(small_batches(12))
    for loss in losses:
        micro_losses = [loss_of(run.reference.model, next(batches)) for _ in range(4)]
        assert loss == pytest.approx(sum(micro.item() for micro in micro_losses) / 4, rel=1e-5)
        sum(micro_losses).div(4).backward()
        run.reference.step()
    assert len(losses) == 3
    assert relative_error(run.store.values.detach(), run.reference.delta.detach()) <= 1e-5


@pytest.mark.parametrize("max_grad_norm", [0.02, 0.0])
def test_clipping(max_grad_norm):
    run = Run(optimizer=torch.optim.SGD)
    run.train(5, max_grad_norm=max_grad_norm)
    for batch in small_batches(5):
        loss_of(run.reference.model, batch).backward()
        run.reference.step(max_norm=max_grad_norm or None)
    assert relative_error(run.store.values.detach(), run.reference.delta.detach()) <= 1e-5


def test_gradients_are_clipped_to_a_norm_of_1_unless_told_otherwise():
    run = Run(optimizer=torch.optim.SGD)
    Training(run.store, run.optimizer, lambda: 1e3 * run.loss(), TrainingSettings(1)).run()
    rate = run.optimizer.param_groups[0]["lr"]
    assert run.store.values.norm().item() == pytest.approx(rate, rel=1e-4)


@pytest.mark.bits
def test_gradients_left_over_from_before_do_not_count():
    run, clean = Run(), Run()
    loss_of(run.model, small_batches(1, seed=9)[0]).backward()
    run.train(2)
    clean.train(2)
    assert torch.equal(run.store.values, clean.store.values)


def test_the_callbacks_come_in_order():
    run, calls = Run(), []
    losses = run.train(
        2,
        loss=lambda: calls.append("loss") or run.loss(),
        accumulation=2,
        on_step=lambda step, loss: calls.append((step, loss, run.snapshot())),
        on_micro_batch=lambda: calls.append("micro-batch"),
    )
    names = [call if isinstance(call, str) else call[0] for call in calls]
    assert names == [*["micro-batch", "loss"] * 2, 1, *["micro-batch", "loss"] * 2, 2]
    steps = [call for call in calls if not isinstance(call, str)]
    assert [loss for _, loss, _ in steps] == losses
    assert not same_snapshot(steps[0][2], steps[1][2])
    assert same_snapshot(steps[1][2], run.snapshot())  # the step is complete when it is reported


def test_no_steps_and_one_step():
    run = Run()
    before = run.snapshot()
    assert run.train(0) == []
    assert same_snapshot(run.snapshot(), before)
    assert len(run.train(1)) == 1
    assert not same_snapshot(run.snapshot(), before)


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("where", ["on_micro_batch", "loss", "backward", "on_step"])
@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_whatever_is_raised_leaves_the_last_complete_step(where, stop_at, error):
    run = Run()
    complete, micro_batches = [run.snapshot()], 0

    def on_micro_batch():
        nonlocal micro_batches
        micro_batches += 1
        if where == "on_micro_batch" and micro_batches == 2 * stop_at:
            raise error

    def loss():
        stop = micro_batches == 2 * stop_at
        if where == "loss" and stop:
            raise error
        loss = run.loss()
        if where == "backward" and stop:
            loss = _RaisingBackward.apply(loss, error)
        return loss

    def on_step(step, _):
        complete.append(run.snapshot())
        if where == "on_step" and step == stop_at:
            raise error

    with pytest.raises(error):
        run.train(6, loss, accumulation=2, on_step=on_step, on_micro_batch=on_micro_batch)
    assert len(complete) == (stop_at + 1 if where == "on_step" else stop_at)
    assert same_snapshot(run.snapshot(), complete[-1])


class _RaisingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, error):
        ctx.error = error
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ctx.error


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("micro_batch", [0, 1])
@pytest.mark.parametrize("bad_step", [1, 2, 4])
def test_a_loss_that_is_not_finite_keeps_the_last_values_known_to_give_a_finite_one(bad_step, micro_batch, value):
    run, count = Run(), 0
    complete = [run.snapshot()]
    remedy = "Try another VAE" if bad_step == 1 else "Lower the learning rate"

    def loss():
        nonlocal count
        count += 1
        return run.loss() + (value if count == 2 * (bad_step - 1) + micro_batch + 1 else 0.0)

    with pytest.raises(TrainingError, match=rf"step {bad_step}: the loss became {value}.*{remedy}"):
        run.train(6, loss, accumulation=2, on_step=lambda *_: complete.append(run.snapshot()))
    assert len(complete) == bad_step
    assert same_snapshot(run.snapshot(), complete[max(0, bad_step - 2)])


class _InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, bad):
        ctx.bad = bad
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (math.inf if ctx.bad else 1.0), None


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
@pytest.mark.parametrize("bad_step", [1, 3])
def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_values(bad_step, max_grad_norm):
    run, count = Run(), 0
    complete = [run.snapshot()]

    def loss():
        nonlocal count
        count += 1
        return _InfiniteGradient.apply(run.loss(), count == bad_step)

    with pytest.raises(TrainingError, match=f"step {bad_step}: the gradient became"):
        run.train(6, loss, max_grad_norm=max_grad_norm, on_step=lambda *_: complete.append(run.snapshot()))
    assert len(complete) == bad_step
    assert same_snapshot(run.snapshot(), complete[-1])


def test_a_divergent_run_ends_with_finite_weights():
    run = Run(optimizer=torch.optim.SGD)
    run.optimizer.param_groups[0]["lr"] = 1e6
    with pytest.raises(TrainingError, match="The last good values are kept"):
        run.train(20)
    assert run.store.values.isfinite().all()
    assert all(tensor.isfinite().all() for tensor in every_bit(run.model).values())
    assert loss_of(run.model, small_batches(1)[0]).isfinite()


def test_a_last_step_that_leaves_the_numbers_is_an_error_too():
    run = Run(optimizer=torch.optim.SGD)
    run.optimizer.param_groups[0]["lr"] = 1e38
    with pytest.raises(TrainingError, match="step 1"):
        run.train(1, lambda: 1e4 * run.loss())
    assert run.store.values.isfinite().all()


@pytest.mark.bits
def test_a_scaler_changes_nothing_but_the_scale():
    scaled, plain = Run(), Run()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    losses = scaled.train(5, max_grad_norm=0.02, scaler=scaler)
    assert losses == plain.train(5, max_grad_norm=0.02)
    assert torch.equal(scaled.store.values, plain.store.values)
    assert scaler.get_scale() == 2.0**12


def test_a_scaler_skips_a_step_that_overflows_and_lowers_the_scale():
    run, count, snapshots = Run(), 0, []
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def loss():
        nonlocal count
        count += 1
        return _InfiniteGradient.apply(run.loss(), count == 2)

    losses = run.train(4, loss, scaler=scaler, on_step=lambda *_: snapshots.append(run.snapshot()))
    assert len(losses) == 4
    assert scaler.get_scale() == 2.0**9
    assert same_snapshot(snapshots[0], snapshots[1])
    assert not same_snapshot(snapshots[1], snapshots[2])


def test_a_scaler_at_its_end_is_an_error():
    run = Run()
    before = run.snapshot()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with pytest.raises(TrainingError, match="step 3: the gradient became"):
        run.train(9, lambda: _InfiniteGradient.apply(run.loss(), True), scaler=scaler)
    assert same_snapshot(run.snapshot(), before)


def test_a_bypassed_layer_is_named_before_anything_changes():
    model = nn.ModuleDict({"used": nn.Linear(6, 6), "unused": nn.Linear(6, 6)})
    store = attached(model)
    before = every_bit(model)
    optimizer = make_inner(torch.optim.AdamW, store.values, 0.002, 1e-2, {})
    with pytest.raises(TrainingError, match=r"1 of 2 .*unused\.weight"):
        Training(store, optimizer, lambda: model["used"](torch.randn(2, 6)).sum(), TrainingSettings(3)).run()
    assert same_bits(every_bit(model), before)


def test_a_single_bad_step_is_skipped_and_makes_the_run_careful(monkeypatch):
    monkeypatch.setattr(training_module, "RECOVERY_STEPS", 4)
    run, count, rates = Run(), 0, []
    snapshots = [run.snapshot()]

    def loss():
        nonlocal count
        count += 1
        return run.loss() * (math.nan if count == 3 else 1.0)

    def on_step(step, loss):
        snapshots.append(run.snapshot())
        rates.append(run.optimizer.param_groups[0]["lr"])

    losses = run.train(14, loss, patience=2, on_step=on_step)
    assert [math.isnan(loss) for loss in losses] == [False, False, True, *[False] * 11]
    assert same_snapshot(snapshots[3], snapshots[1])  # back to the values known to be good, and the batch is spent
    assert rates == [1e-2, 1e-2, 1e-2, *[5e-3] * 4, *[1e-2] * 7]  # and never more than was asked for


def test_a_bad_step_after_an_adjustment_goes_back_as_well():
    run, count, snapshots = Run(), 0, []

    def loss():
        nonlocal count
        count += 1
        return run.loss() * (math.nan if count == 5 else 1.0)

    settings = TrainingSettings(6, adjust_at=(2,), theta=0.05, patience=2)
    training = Training(run.store, run.optimizer, loss, settings)
    training.run(on_step=lambda *_: snapshots.append(run.snapshot()))
    (_, adjustment), = training.adjustments
    assert 0 < adjustment.ineffective < adjustment.trained
    assert same_snapshot(snapshots[4], snapshots[2])  # the values that gave the last finite loss
    assert not same_snapshot(snapshots[3], snapshots[2])


def test_moments_that_broke_the_values_are_dropped_and_the_run_goes_on():
    run, snapshots = Run(), []

    def on_step(step, loss):
        snapshots.append(run.snapshot())
        if step == 2:  # what one huge gradient leaves
            run.optimizer.state[run.store.values]["exp_avg"].fill_(math.inf)

    losses = run.train(5, patience=2, on_step=on_step)
    assert [math.isnan(loss) for loss in losses] == [False, False, True, False, False]
    assert same_snapshot(snapshots[2], snapshots[1]) and not same_snapshot(snapshots[3], snapshots[2])


def test_so_many_bad_steps_in_a_row_end_the_run():
    run, count = Run(), 0

    def loss():
        nonlocal count
        count += 1
        return run.loss() * (math.nan if count in (3, 5, 6, 7) else 1.0)

    with pytest.raises(TrainingError, match="step 7: the loss became nan for the 3. time in a row"):
        run.train(9, loss, patience=3)


def test_a_loss_that_never_was_finite_is_not_blamed_on_the_learning_rate():
    run = Run()
    with pytest.raises(TrainingError, match="step 3: .* the learning rate is not to blame.*VAE"):
        run.train(9, lambda: run.loss() * math.nan, patience=3)


@pytest.mark.parametrize("schedule, warmup, expected", [
    ("constant", 0, [1, 1, 1, 1]),
    ("constant", 2, [0.5, 1, 1, 1]),
    ("linear", 0, [1, 0.75, 0.5, 0.25]),
    ("linear", 2, [0.5, 1, 1, 0.5]),
    ("cosine", 0, [1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5]),
    ("cosine", 4, [0.25, 0.5, 0.75, 1]),
])  # fmt: skip
def test_the_learning_rate_follows_its_schedule(schedule, warmup, expected):
    run, rates = Run(), []
    settings = TrainingSettings(4, schedule=schedule, warmup=warmup)
    training = Training(run.store, run.optimizer, run.loss, settings)
    training.run(on_step=lambda *_: rates.append(run.optimizer.param_groups[0]["lr"] / 1e-2))
    assert rates == pytest.approx(expected)
