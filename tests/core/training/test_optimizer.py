"""The one line: training with SaRA equals training a dense model whose gradients are masked to the support."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

from sara_core import SaRA, TrainingError, learning_rate_for
from tests.support.small_models import (
    MaskedTraining, at_support, every_bit, loss_of, relative_error, repeatable, same_bits, small_batches, small_net,
)  # fmt: skip

# Gradients differ in the last bits only (the order of sums), and so do the sums of ten steps.
TIGHT = 1e-5
STEPS = 10


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


def pair(dtype=torch.float32, optimizer=torch.optim.AdamW, weight_gradient="dense", **options):
    """A model in training with its optimizer, and the obvious way to train the same elements."""
    model, base = small_net(dtype=dtype), small_net(dtype=dtype)
    ours = SaRA(model, density=0.2, optimizer=optimizer, weight_gradient=weight_gradient, **options)
    if optimizer in (torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor):
        options.setdefault("weight_decay", 0.0)
    return model, ours, MaskedTraining(base, ours.store.support, optimizer, **options)


def check_equal(model, ours, reference, tolerance=TIGHT):
    assert ours.values.detach().abs().max() > 0
    assert relative_error(ours.values.detach(), reference.delta.detach()) <= tolerance
    support = ours.store.support
    trained, expected = (at_support(dict(m.named_parameters()), support) for m in (model, reference.model))
    assert relative_error(trained, expected) <= tolerance


@pytest.mark.parametrize("optimizer, options", [
    (torch.optim.AdamW, dict(lr=1e-2)),
    (torch.optim.AdamW, dict(lr=1e-2, betas=(0.8, 0.9), eps=1e-6, amsgrad=True)),
    (torch.optim.AdamW, dict(lr=1e-2, fused=False)),
    (torch.optim.AdamW, dict(lr=1e-2, foreach=True)),
    (torch.optim.AdamW, dict(lr=0.1, weight_decay=0.5)),
    (torch.optim.Adam, dict(lr=1e-2)),
    (torch.optim.SGD, dict(lr=0.1)),
    (torch.optim.SGD, dict(lr=0.1, momentum=0.9, nesterov=True)),
    (torch.optim.SGD, dict(lr=0.1, momentum=0.9, foreach=True)),
    (torch.optim.SGD, dict(lr=0.1, weight_decay=0.5)),
    (torch.optim.Adafactor, dict(lr=0.1)),
    (torch.optim.RMSprop, dict(lr=1e-2)),
], ids=lambda value: value.__name__ if isinstance(value, type) else ",".join(value))  # fmt: skip
def test_training_equals_dense_training_masked_to_the_support(optimizer, options):
    model, ours, reference = pair(optimizer=optimizer, **options)
    for batch in small_batches(STEPS):
        ours.zero_grad()
        loss_of(model, batch).backward()
        ours.step()
        loss_of(reference.model, batch).backward()
        reference.step()
    check_equal(model, ours, reference)


@pytest.mark.parametrize("dtype, tolerance", [
    (torch.float64, TIGHT),
    # Gradients of such a model are only known to its precision, and errors of early steps reach the later ones.
    (torch.bfloat16, 2**-6),
    (torch.float16, 2**-9),
])  # fmt: skip
@pytest.mark.parametrize("weight_gradient", ["dense", "csr"])
def test_training_in_other_dtypes(dtype, tolerance, weight_gradient):
    model, ours, reference = pair(dtype, weight_gradient=weight_gradient, lr=1e-2)
    for x, y in small_batches(STEPS):
        batch = x.to(dtype), y.to(dtype)
        ours.zero_grad()
        loss_of(model, batch).backward()
        ours.step()
        loss_of(reference.model, batch).backward()
        reference.step()
    assert ours.values.dtype == torch.float32
    assert relative_error(ours.values.detach(), reference.delta.detach()) <= tolerance


def test_only_the_chosen_elements_change():
    model, base = small_net(), small_net()
    ours = SaRA(model, density=0.2, lr=1e-2)
    for batch in small_batches(3):
        ours.zero_grad()
        loss_of(model, batch).backward()
        ours.step()
    chosen = {segment.name: set(segment.flat().tolist()) for segment in ours.store.support}
    before = dict(base.named_parameters())
    assert set(chosen) < set(before)
    for name, trained in model.named_parameters():
        if name != "sara_values":
            differs = (trained != before[name]).view(-1).nonzero().view(-1).tolist()
            assert set(differs) <= chosen.get(name, set()), name
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == ours.store.support.nnz
    assert ours.selection.count == ours.values.numel() == ours.store.support.nnz


@pytest.mark.bits
def test_the_first_forward_gives_the_bits_of_the_base():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model, frozen = small_net(dtype=dtype), small_net(dtype=dtype).requires_grad_(False)
        SaRA(model, threshold=0.05)
        x = small_batches(1)[0][0].to(dtype)
        assert torch.equal(model(x), frozen(x))
        assert same_bits(every_bit(model), every_bit(frozen))


def test_clearing_the_gradient_keeps_its_memory_unless_asked_not_to():
    model = small_net()
    ours = SaRA(model, density=0.2)
    loss_of(model, *small_batches(1)).backward()
    gradient, memory = ours.values.grad, ours.values.grad.data_ptr()
    assert gradient.abs().max() > 0
    ours.zero_grad()
    assert ours.values.grad.data_ptr() == memory and not ours.values.grad.any()
    ours.zero_grad(set_to_none=True)
    assert ours.values.grad is None


@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulation(set_to_none):
    model, ours, reference = pair(lr=1e-2)
    batches = iter(small_batches(4 * 3))
    for _ in range(4):
        ours.zero_grad(set_to_none=set_to_none)
        for _ in range(3):
            batch = next(batches)
            (loss_of(model, batch) / 3).backward()
            (loss_of(reference.model, batch) / 3).backward()
        ours.step()
        reference.step()
    check_equal(model, ours, reference)


def test_clipping_all_parameters_of_the_model_clips_the_vector():
    model, ours, reference = pair(optimizer=torch.optim.SGD, lr=0.5)
    for batch in small_batches(STEPS):
        model.zero_grad()
        loss_of(model, batch).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.02)
        assert norm > 0.04  # or nothing is shown
        ours.step()
        loss_of(reference.model, batch).backward()
        reference.step(max_norm=0.02)
    check_equal(model, ours, reference)


@pytest.mark.parametrize("clip", [False, True])
def test_grad_scaler(clip):
    model, ours, reference = pair(lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    for batch in small_batches(STEPS):
        ours.zero_grad()
        scaler.scale(loss_of(model, batch)).backward()
        if clip:
            scaler.unscale_(ours)
            nn.utils.clip_grad_norm_(model.parameters(), 0.02)
        scaler.step(ours)
        scaler.update()
        loss_of(reference.model, batch).backward()
        reference.step(max_norm=0.02 if clip else None)
    assert scaler.get_scale() == 2.0**15
    check_equal(model, ours, reference)


def test_grad_scaler_skips_a_step_that_overflows():
    model, ours, reference = pair(lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=100)
    for number, batch in enumerate(small_batches(6)):
        ours.zero_grad()
        before = every_bit(model)
        loss = loss_of(model, batch) * (math.inf if number == 2 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(ours)
        scaler.update()
        if number == 2:
            assert same_bits(every_bit(model), before)
        else:
            loss_of(reference.model, batch).backward()
            reference.step()
    assert scaler.get_scale() == 2.0**11
    assert int(ours.state[ours.values]["step"]) == 5
    check_equal(model, ours, reference)


@pytest.mark.parametrize("make", [
    lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, STEPS),
    lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=STEPS + 1),
], ids=["cosine", "lambda", "one cycle"])  # fmt: skip
def test_schedulers(make):
    model, ours, reference = pair(lr=1e-2)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "lr_scheduler.step() before optimizer.step()" among others
        schedulers = make(ours), make(reference.optimizer)
        for batch in small_batches(STEPS):
            ours.zero_grad()
            loss_of(model, batch).backward()
            ours.step()
            loss_of(reference.model, batch).backward()
            reference.step()
            rates.append(ours.param_groups[0]["lr"])
            for scheduler in schedulers:
                scheduler.step()
            assert ours.param_groups[0]["lr"] == reference.optimizer.param_groups[0]["lr"]
    assert len(set(rates)) > STEPS / 2
    check_equal(model, ours, reference)


def test_autocast_with_a_grad_scaler_learns():
    model = small_net()
    ours = SaRA(model, density=0.3, lr=1e-2)
    scaler = torch.amp.GradScaler("cpu")
    batch, = small_batches(1)
    losses = []
    for _ in range(30):
        ours.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.mse_loss(model(batch[0]).float(), batch[1])
        scaler.scale(loss).backward()
        scaler.step(ours)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_a_closure_is_called_and_its_loss_returned():
    model, ours, reference = pair(lr=1e-2)
    for batch in small_batches(3):

        def closure():
            ours.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            return loss

        with torch.no_grad():
            loss = ours.step(closure)
        expected = loss_of(reference.model, batch)
        assert loss.item() == pytest.approx(expected.item(), rel=TIGHT)
        expected.backward()
        reference.step()
    check_equal(model, ours, reference)


@pytest.mark.bits
def test_weight_decay_is_none_by_default_and_pulls_towards_the_base():
    model, base = small_net(), small_net()
    assert SaRA(small_net(), density=0.2).param_groups[0]["weight_decay"] == 0
    ours = SaRA(model, density=0.2, lr=0.1, weight_decay=0.5, optimizer=torch.optim.SGD)
    with torch.no_grad():
        ours.values.normal_()
    before = ours.values.detach().clone()
    (loss_of(model, small_batches(1)[0]) * 0).backward()
    ours.step()
    assert torch.allclose(ours.values.detach(), before * (1 - 0.1 * 0.5), rtol=1e-6)
    changed = at_support(dict(base.named_parameters()), ours.store.support) + ours.values.detach()
    assert torch.equal(at_support(dict(model.named_parameters()), ours.store.support), changed)


@pytest.mark.parametrize("theta, rate", [(2e-4, 9.3e-4), (8e-4, 7.6e-4), (2e-3, 5.0e-4), (5e-3, 1.7e-4)])
def test_the_papers_learning_rates(theta, rate):
    assert learning_rate_for(theta) == pytest.approx(rate, abs=0.05e-4)


def test_the_default_learning_rate_is_the_papers_for_the_selected_theta():
    by_threshold = SaRA(small_net(), threshold=0.02)
    assert by_threshold.param_groups[0]["lr"] == learning_rate_for(0.02)
    model = small_net()
    weights = [p.detach() for name, p in model.named_parameters() if name.endswith("weight") and name != "norm.weight"]
    magnitudes = torch.cat([w.abs().view(-1) for w in weights]).sort().values
    by_count = SaRA(model, count=100)
    assert by_count.param_groups[0]["lr"] == learning_rate_for(float(magnitudes[99]))
    assert SaRA(small_net(), count=100, lr=0.5).param_groups[0]["lr"] == 0.5


class Bypassed(nn.Module):
    """nn.MultiheadAttention computes with out_proj's weight itself and never calls out_proj."""

    def __init__(self):
        super().__init__()
        self.before, self.attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        h = self.before(x)
        return self.attention(h, h, h, need_weights=False)[0]


def test_a_bypassed_layer_is_named_at_the_first_step():
    model, x = Bypassed(), torch.randn(2, 5, 8)
    ours = SaRA(model, density=0.3)
    before = every_bit(model)
    model(x).square().sum().backward()
    with pytest.raises(TrainingError, match=r"1 of 2 .*attention\.out_proj\.weight.*exclude pattern"):
        ours.step()
    assert same_bits(every_bit(model), before)
    ours.detach()
    ours = SaRA(model, density=0.3, exclude=["out_proj"], lr=1e-2)
    model(x).square().sum().backward()
    ours.step()
    assert not same_bits(every_bit(model), before)


def test_a_bypassed_layer_is_named_at_the_first_evaluation_of_a_closure():
    model, x = Bypassed(), torch.randn(2, 5, 8)
    ours = SaRA(model, density=0.3, optimizer=torch.optim.LBFGS)
    before = every_bit(model)

    def closure():
        loss = model(x).square().sum()
        loss.backward()
        return loss

    with pytest.raises(TrainingError, match=r"1 of 2 .*attention\.out_proj\.weight"):
        ours.step(closure)
    assert same_bits(every_bit(model), before)


def test_a_step_without_a_backward_names_every_weight():
    ours = SaRA(small_net(), density=0.3)
    with pytest.raises(TrainingError, match=r"6 of 6 .*conv\.weight.* and 3 more"):
        ours.step()


def test_an_optimizer_that_needs_the_closure():
    model = small_net()
    ours = SaRA(model, density=0.3, optimizer=torch.optim.LBFGS, lr=0.1)
    batch, = small_batches(1)

    def closure():
        ours.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    before = loss_of(model, batch).item()
    for _ in range(3):
        ours.step(closure)
    assert loss_of(model, batch).item() < before


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double"])
def test_a_model_converted_after_construction_is_refused(convert):
    model = small_net()
    ours = SaRA(model, density=0.3, lr=1e-2)
    getattr(model, convert)()
    dtype = model.conv.weight.dtype
    x, y = small_batches(1)[0]
    with pytest.raises(TrainingError):
        loss_of(model, (x.to(dtype), y.to(dtype))).backward()
        ours.step()
