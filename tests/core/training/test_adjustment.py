"""Progressive parameter adjustment continues exactly: what it ends keeps its values, what stays does not notice."""

import pytest
import torch

from sara_core import SaRA, TrainingError
from sara_core.training.adjustment import adjust
from sara_core.training.optimizer import make_inner
from tests.support.small_models import (
    attached, every_bit, loss_of, relative_error, repeatable, same_bits, small_batches, small_net,
)  # fmt: skip

pytestmark = pytest.mark.bits

BATCHES = small_batches(12)
OPTIMIZERS = {
    "AdamW": (torch.optim.AdamW, {"lr": 3e-3}),
    "SGD with momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
}
# A fused optimizer computes a vector in blocks of the processor's width and what is left of it one by one, which rounds
# otherwise. So an element whose place in the vector changes may differ in its last bits, and torch promises no others.
# Unfused, every operation is one over the whole vector, and gave the same bits at any place on all processors tried.
UNFUSED = {"fused": False}


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


def middle(store) -> float:
    """A θ that about half of the trained elements have reached."""
    return float(torch.cat([store.trained_values(n).abs() for n in range(len(store.support))]).median())


def start(optimizer="AdamW", options={}, **ways):
    model = small_net()
    store = attached(model, **ways)
    kind, settings = OPTIMIZERS[optimizer]
    return model, store, make_inner(kind, store.values, 0.002, None, {**settings, **options})


def step(model, store, optimizer, batch, write=True):
    optimizer.zero_grad()
    loss_of(model, batch).backward()
    optimizer.step()
    store.write()


def whole_vector(store) -> torch.Tensor:
    return torch.cat([store.whole(number)[1] for number in range(len(store.support))])


@pytest.mark.parametrize("copy_weights", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_stays_trains_on_as_if_the_rest_had_only_been_held(optimizer, copy_weights):
    """Against a run that trains everything on and puts the ended elements back after every step: bit for bit."""
    model, store, ours = start(optimizer, UNFUSED, copy_weights=copy_weights)
    held_model, held_store, held_ours = start(optimizer, UNFUSED)
    held = torch.zeros(0, dtype=torch.long)
    kept = None
    for number, batch in enumerate(BATCHES):
        if number in (4, 8):
            theta = middle(store)
            over = torch.cat([held_store.trained_values(n).abs() for n in range(len(held_store.support))]) >= theta
            held = torch.cat([held, over.nonzero().view(-1)]).unique()
            kept = held_store.values.detach()[held].clone()
            before = whole_vector(store), every_bit(model)
            adjust(store, ours, theta)
            assert torch.equal(whole_vector(store), before[0]) and same_bits(every_bit(model), before[1])
        step(model, store, ours, batch)
        held_ours.zero_grad()
        loss_of(held_model, batch).backward()
        held_ours.step()
        if kept is not None:
            held_store.values.data[held] = kept
        held_store.write()
        assert torch.equal(whole_vector(store), held_store.values)
    assert 0 < store.values.numel() == store.support.nnz == held_store.values.numel() - len(held)
    if not copy_weights:
        assert same_bits(every_bit(model), every_bit(held_model))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_as_users_have_them_optimizers_go_on_up_to_the_last_bits(optimizer):
    """Those that have a fused implementation are fused by default. One adjustment only: by the second, an element close
    to θ may lie on either side of it."""
    model, store, ours = start(optimizer)
    held_model, held_store, held_ours = start(optimizer)
    for batch in BATCHES[:4]:
        step(model, store, ours, batch)
        step(held_model, held_store, held_ours, batch)
    assert torch.equal(store.values, held_store.values)  # the same vectors until then
    theta = middle(store)
    held = torch.cat([store.trained_values(n).abs() for n in range(len(store.support))]) >= theta
    kept = held_store.values.detach()[held].clone()
    adjust(store, ours, theta)
    for batch in BATCHES[4:]:
        step(model, store, ours, batch)
        step(held_model, held_store, held_ours, batch)
        held_store.values.data[held] = kept
        held_store.write()
    assert 0 < len(store.values) == len(held) - len(kept) < len(held)
    assert relative_error(whole_vector(store), held_store.values.detach()) <= 1e-5


def test_it_reports_what_was_below_and_the_delta_holds_everything():
    model, store, optimizer = start()
    for batch in BATCHES[:4]:
        step(model, store, optimizer, batch)
    theta = middle(store)
    total, before = store.values.numel(), store.delta()
    magnitudes = torch.cat([store.trained_values(n).abs() for n in range(len(store.support))])
    result = adjust(store, optimizer, theta)
    assert result == (total, int((magnitudes < theta).sum()), True)
    assert store.values.numel() == result.ineffective == store.ineffective(theta)
    after = store.delta()
    for name, entry in before.entries.items():
        assert torch.equal(entry.indices, after.entries[name].indices)
        assert torch.equal(entry.values, after.entries[name].values)
    for state in optimizer.state.values():
        assert {kept.shape for kept in state.values() if kept.dim()} == {store.values.shape}


@pytest.mark.parametrize("copy_weights", [False, True])
def test_restoring_gives_back_every_bit(copy_weights):
    model, store, optimizer = start(copy_weights=copy_weights)
    base = every_bit(small_net())
    for number, batch in enumerate(BATCHES[:6]):
        if number in (2, 4):
            adjust(store, optimizer, middle(store))
        step(model, store, optimizer, batch)
    store.restore()
    assert same_bits(every_bit(model), base)
    store.write(frozen=True)
    fresh = small_net().requires_grad_(False)
    store.delta().apply_(fresh)
    with torch.no_grad():
        assert torch.equal(model(BATCHES[0][0]), fresh(BATCHES[0][0]))


def test_a_weight_whose_elements_have_all_ended_saves_nothing_and_the_others_train_on():
    model, store, optimizer = start()
    step(model, store, optimizer, BATCHES[0])
    names = [segment.name for segment in store.support]
    number = names.index("conv.weight")
    ended = store.support.segments[number].span
    over = torch.zeros(store.values.numel(), dtype=torch.bool)
    over[ended] = True
    values = store.values.detach()[ended].clone()
    optimizer.state.clear()
    store.freeze(over)
    assert len(store.support.segments[number]) == 0
    for batch in BATCHES[1:3]:
        step(model, store, optimizer, batch)
    assert torch.equal(store.whole(number)[1], values)
    assert store.values.abs().min() > 0


def test_a_state_of_before_an_adjustment_puts_every_weight_back_into_its_place_in_the_vector():
    model, store, optimizer = start()
    step(model, store, optimizer, BATCHES[0])
    state, places = store.state(), [segment.span for segment in store.support]
    adjust(store, optimizer, middle(store))
    assert [segment.span for segment in store.support] != places
    store.load_state(state)
    assert [segment.span for segment in store.support] == places


@pytest.mark.parametrize("theta, ineffective", [(1e-9, "none"), (1e9, "all")])
def test_nothing_is_ended_where_that_would_end_all_or_nothing(theta, ineffective):
    model, store, optimizer = start()
    step(model, store, optimizer, BATCHES[0])
    total = store.values.numel()
    assert adjust(store, optimizer, theta) == (total, 0 if ineffective == "none" else total, True)
    assert store.values.numel() == total and store.frozen == [None] * len(store.support)


class Blockwise(torch.optim.SGD):
    """Keeps a state that is quantised in blocks, as 8-bit optimizers do."""

    def step(self, closure=None):
        values = self.param_groups[0]["params"][0]
        self.state[values].setdefault("moment", torch.zeros(values.shape, dtype=torch.uint8))
        self.state[values].setdefault("scale", torch.ones(4))
        return super().step(closure)


def test_moments_kept_in_blocks_start_anew_and_it_says_so():
    model = small_net()
    store = attached(model)
    optimizer = Blockwise([store.values], lr=1e-2)
    step(model, store, optimizer, BATCHES[0])
    assert not adjust(store, optimizer, middle(store)).moments_kept
    assert store.values not in optimizer.state
    step(model, store, optimizer, BATCHES[1])
    assert optimizer.state[store.values]["moment"].shape == store.values.shape


def test_the_one_line_optimizer_adjusts_between_steps_and_resumes_across_it():
    def run(batches, optimizer, model):
        for batch in batches:
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()

    models = [small_net() for _ in range(3)]
    straight, stopped, resumed = (
        SaRA(model, density=0.3, lr=3e-3, weight_gradient="dense") for model in models
    )
    for ours, model in ((straight, models[0]), (stopped, models[1])):
        run(BATCHES[:4], ours, model)
        ours.adjust(middle(ours.store))
        run(BATCHES[4:6], ours, model)
    resumed.load_state_dict(stopped.state_dict())
    run(BATCHES[6:], straight, models[0])
    run(BATCHES[6:], resumed, models[2])
    assert torch.equal(resumed.values, straight.values)
    assert same_bits(every_bit(models[2]), every_bit(models[0]))


def test_without_a_threshold_there_is_nothing_to_adjust_by():
    ours = SaRA(small_net(), density=0.3)
    ours.selection = type(ours.selection)({}, 1, None, 2, {"rule": "random"})
    with pytest.raises(TrainingError, match="no threshold to adjust by"):
        ours.adjust()
