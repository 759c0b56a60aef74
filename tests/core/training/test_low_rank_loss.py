"""The low-rank loss in a training: its draws against the full sum, and what it does to the trained matrices."""

import copy
import io
import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sara_core import SaRA, TrainingError
from sara_core.backward.store import Store
from sara_core.backward.support import Support
from sara_core.training import low_rank
from sara_core.training.low_rank import (
    PAIR_COST, LowRankLoss, drawing_probabilities, expected_cost, is_matrix, largest_rank, nuclear_norm_gradient,
)  # fmt: skip
from tests.support.small_models import attached, loss_of, relative_error, repeatable, small_batches, small_net

EVERYTHING = 1e9


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


@pytest.fixture
def spend(monkeypatch):
    """Sets what a step may cost: `spend(50)` per element of the weights, or `spend(EVERYTHING)`."""
    return lambda per_element: monkeypatch.setitem(low_rank.BUDGET, "cpu", per_element)


def store_of(masks: dict[str, torch.Tensor]) -> Store:
    """A store over weights of small random values."""
    indices = {name: mask.reshape(-1).nonzero().flatten().to(torch.int32) for name, mask in masks.items()}
    store = Store(Support.from_indices(indices, {name: mask.shape for name, mask in masks.items()}))
    for number, mask in enumerate(masks.values()):
        store.bind(number, SimpleNamespace(weight=torch.randn(mask.shape) * 1e-2), in_place=True)
    with torch.no_grad():
        store.values.normal_(std=1e-2)
    return store


def some_store() -> Store:
    shapes = {"linear": (12, 20), "conv": (6, 4, 3, 3), "bias": (9,), "tall": (25, 7), "square": (10, 10)}
    masks = {name: torch.rand(shape) < 0.5 for name, shape in shapes.items()}
    masks["empty"] = torch.zeros(5, 5, dtype=torch.bool)
    masks["one row"] = torch.ones(1, 6, dtype=torch.bool)
    masks["one column"] = torch.ones(6, 1, 1, 1, dtype=torch.bool)
    return store_of(masks)


def full_sum(store: Store) -> tuple[float, torch.Tensor]:
    """Σ ‖P_M‖_* over the matrices of a store and its gradient, matrix by matrix."""
    loss, gradient = 0.0, torch.zeros_like(store.values)
    for number, segment in enumerate(store.support):
        if is_matrix(segment):
            norm, gradient[segment.span] = nuclear_norm_gradient(segment, store.trained_values(number))
            loss += norm
    return loss, gradient


def test_the_expectation_over_every_possible_draw_is_the_full_sum(spend, monkeypatch):
    store = some_store()
    loss = LowRankLoss(store, weight=0.3, seed=0)
    spend(20.0)
    probabilities = loss.probabilities()
    matrices = [number for number, segment in enumerate(store.support) if is_matrix(segment)]
    assert [store.support.segments[number].name for number in matrices] == ["linear", "conv", "tall", "square"]
    assert all(0 < probabilities[number] < 1 for number in matrices)
    assert int((probabilities > 0).sum()) == len(matrices)

    already = torch.randn(store.support.nnz)
    expected_loss, expected_gradient = 0.0, torch.zeros(store.support.nnz, dtype=torch.float64)
    for included in itertools.product([False, True], repeat=len(matrices)):
        drawn = list(itertools.compress(matrices, included))
        monkeypatch.setattr(LowRankLoss, "draw", lambda self, probabilities, drawn=drawn: drawn)
        chance = 1.0
        for number, is_in in zip(matrices, included):
            chance *= float(probabilities[number]) if is_in else 1 - float(probabilities[number])
        store.values.grad = already.clone()
        expected_loss += chance * loss.add_gradient()
        expected_gradient += chance * store.values.grad.double()
    full_loss, full_gradient = full_sum(store)
    assert expected_loss == pytest.approx(0.3 * full_loss, rel=1e-6)
    assert relative_error(expected_gradient - already, 0.3 * full_gradient) < 1e-5


def test_matrices_are_drawn_as_often_as_their_probabilities_say():
    loss = LowRankLoss(some_store(), weight=1.0, seed=3)
    probabilities = torch.tensor([0.0, 0.01, 0.3, 0.9, 1.0], dtype=torch.float64)
    times = 20_000
    counts = torch.zeros(5, dtype=torch.float64)
    for _ in range(times):
        counts[loss.draw(probabilities)] += 1
    deviation = (times * probabilities * (1 - probabilities)).sqrt()
    assert ((counts - times * probabilities).abs() <= 4 * deviation).all()


@pytest.mark.bits
def test_a_budget_for_everything_gives_the_full_sum_every_time(spend):
    spend(EVERYTHING)
    store = some_store()
    loss = LowRankLoss(store, weight=2.0, seed=0)
    estimate = loss.add_gradient()
    full_loss, full_gradient = full_sum(store)
    assert estimate == pytest.approx(2 * full_loss)
    assert torch.equal(store.values.grad, 2 * full_gradient)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.97, 2.0])
def test_the_expected_cost_is_the_budget_and_no_other_probabilities_have_less_variance(share):
    """share: of what all matrices cost. At 0.9 some are certain and some are not."""
    support = some_store().support
    numbers = [number for number, segment in enumerate(support) if is_matrix(segment)]
    segments = [support.segments[number] for number in numbers]
    cost = torch.tensor([expected_cost(segment) for segment in segments], dtype=torch.float64)
    rank = torch.tensor([largest_rank(segment) for segment in segments], dtype=torch.float64)
    allowed = share * float(cost.sum())
    elements = sum(segment.rows * segment.columns for segment in support)
    chosen = drawing_probabilities(support, allowed / elements)[numbers]
    assert float(chosen @ cost) == pytest.approx(min(allowed, float(cost.sum())))
    assert (chosen > 0).all() and (chosen <= 1).all()
    assert int((chosen == 1).sum()) in {0.001: [0], 0.3: [0], 2.0: [4]}.get(share, [1, 2, 3])
    for _ in range(200):
        other = (chosen * torch.exp(0.3 * torch.randn(len(chosen)))).clamp(max=1)
        if float(other @ cost) <= allowed:
            assert float((rank / other).sum()) >= float((rank / chosen).sum()) * (1 - 1e-9)


@pytest.mark.parametrize("elements", [128, 256, 2000])
def test_the_pairs_that_are_expected_are_those_that_there_are(elements):
    """Two elements in one line of the longer side are a pair, and so is each with itself; spread at random, there are
    as many as the cost is made of, but for the draw."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(20):
        index = torch.randperm(64 * 128, generator=generator)[:elements].sort().values.to(torch.int32)
        (segment,) = Support.from_indices({"w": index}, {"w": (64, 128)}).segments
        found.append(float(torch.bincount(segment.col.long()).square().sum()))
    expected = (expected_cost(segment) - largest_rank(segment) ** 3) / PAIR_COST
    assert sum(found) / len(found) == pytest.approx(expected, rel=0.1)


def test_more_samples_per_step_allow_more_matrices():
    store = some_store()
    one, four = (LowRankLoss(store, 1.0, seed=0, samples_per_step=samples).probabilities() for samples in (1, 4))
    assert torch.allclose(four, 4 * one) and float(four.max()) < 1


def test_what_a_backward_has_not_reached_is_still_found_missing(spend):
    """The loss gives every weight a gradient, which must not hide a layer that the model does not use."""
    spend(EVERYTHING)
    store = some_store()
    LowRankLoss(store, weight=1.0, seed=0).add_gradient()
    assert len(store.unreached()) == len(store.support)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_an_impossible_weight_is_refused(weight):
    with pytest.raises(TrainingError, match="low-rank weight is .*: it takes a number not below 0"):
        LowRankLoss(some_store(), weight, seed=0)


@pytest.mark.bits
def test_weights_that_are_copied_by_the_host_get_the_same_gradient(spend):
    spend(EVERYTHING)
    stores = [attached(small_net(), copy_weights=copies) for copies in (False, True)]
    for store in stores:
        with torch.no_grad():
            store.values.copy_(torch.linspace(-1, 1, store.support.nnz))
        LowRankLoss(store, weight=1.0, seed=0).add_gradient()
    assert torch.equal(stores[0].values.grad, stores[1].values.grad)


def test_settled_elements_are_neither_touched_nor_part_of_the_matrix(spend):
    spend(EVERYTHING)
    store = some_store()
    over = torch.rand(store.support.nnz) < 0.4
    over[store.support.segments[1].span] = True  # nothing of this matrix is left
    before, expected = store.delta(), torch.zeros(store.support.nnz)
    for number, segment in enumerate(store.support):
        if min(segment.rows, segment.columns) > 1:
            matrix = torch.zeros(segment.rows * segment.columns)
            matrix[segment.flat()] = store.trained_values(number).masked_fill(over[segment.span], 0)
            u, s, vh = torch.linalg.svd(matrix.view(segment.rows, -1).double(), full_matrices=False)
            expected[segment.span] = ((u * (s > 1e-6 * s[0])) @ vh).float().view(-1)[segment.flat()]
    store.freeze(over)
    LowRankLoss(store, weight=1.0, seed=0).add_gradient()
    assert relative_error(store.values.grad, expected[~over]) < 1e-6
    with torch.no_grad():
        store.values.sub_(store.values.grad)
    after, touched = store.delta(), []
    for name, entry in before.entries.items():
        touched.append(after.entries[name].values != entry.values)
    assert not (torch.cat(touched) & over).any()
    assert torch.cat(touched).any()


class Bottleneck(nn.Module):
    """[n, 16, 6, 6] → [n, 24]: a convolution and two Linears, large enough to have a rank."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 24, 3)
        self.up = nn.Linear(24, 48)
        self.down = nn.Linear(48, 24)

    def forward(self, x):
        return self.down(torch.relu(self.up(torch.relu(self.conv(x)).mean((2, 3)))))


def trained(weight: float | None, steps: int = 200) -> SaRA:
    """A short training with the low-rank loss, or without one."""
    torch.manual_seed(0)
    model = Bottleneck()
    data, target = torch.randn(32, 16, 6, 6), torch.randn(32, 24)
    ours = SaRA(model, density=0.5, lr=3e-3, weight_gradient="dense")
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(ours, 200)
    loss = None if weight is None else LowRankLoss(ours.store, weight, seed=0)
    for _ in range(steps):
        ours.zero_grad()
        nn.functional.mse_loss(model(data), target).backward()
        if loss is not None:
            loss.add_gradient()
        ours.step()
        schedule.step()
    return ours


def effective_ranks(ours: SaRA) -> list[float]:
    """Of every trained matrix exp(entropy of the singular values as shares of their sum), 1 … rank (Roy & Vetterli,
    "The effective rank: a measure of effective dimensionality", EUSIPCO 2007)."""
    ranks = []
    for number, segment in enumerate(ours.store.support):
        matrix = torch.zeros(segment.rows * segment.columns, dtype=torch.float64)
        matrix[segment.flat()] = ours.store.trained_values(number).double()
        singular = torch.linalg.svdvals(matrix.view(segment.rows, segment.columns))
        ranks.append(float(torch.special.entr(singular / singular.sum()).sum().exp()))
    return ranks


@pytest.mark.parametrize("budget", [50, EVERYTHING], ids=["drawn", "full sum"])
def test_a_large_weight_lowers_the_effective_rank_of_every_trained_matrix_and_none_does_not(budget, spend):
    spend(budget)
    at_first, without, low = (
        effective_ranks(ours) for ours in (trained(None, steps=0), trained(0.0), trained(0.007))
    )
    for before, free, regularised in zip(at_first, without, low):
        assert free > 0.9 * before
        assert regularised < 0.9 * free
    assert sum(low) < 0.65 * sum(without)


@pytest.mark.bits
def test_a_weight_of_zero_leaves_every_bit_of_the_training_alone(spend):
    spend(50)
    assert torch.equal(trained(0.0, steps=20).values, trained(None, steps=20).values)
    assert not torch.equal(trained(1e-3, steps=20).values, trained(None, steps=20).values)


def test_n_plus_m_steps_are_n_steps_saved_and_m_steps_continued(spend):
    spend(30)

    def start():
        model = small_net()
        ours = SaRA(model, density=0.3, lr=1e-2, weight_gradient="dense")
        return model, ours, LowRankLoss(ours.store, weight=1e-2, seed=5)

    def train_some(model, ours, loss, batches):
        estimates = []
        for batch in batches:
            ours.zero_grad()
            loss_of(model, batch).backward()
            estimates.append(loss.add_gradient())
            ours.step()
        return estimates

    batches = small_batches(12)
    uninterrupted = start()
    expected = train_some(*uninterrupted, batches)
    assert any(expected[:7]) and any(expected[7:])

    first, second = start(), start()
    train_some(*first, batches[:7])
    file = io.BytesIO()
    torch.save({"optimizer": first[1].state_dict(), "low_rank": first[2].state()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second[1].load_state_dict(copy.deepcopy(saved["optimizer"]))
    second[2].load_state(saved["low_rank"])
    assert train_some(*second, batches[7:]) == expected[7:]
    assert torch.equal(second[1].values, uninterrupted[1].values)


def test_the_seed_decides_the_draws():
    store = some_store()
    probabilities = torch.full((len(store.support),), 0.5, dtype=torch.float64)
    first, again, other = (
        [loss.draw(probabilities) for _ in range(20)]
        for loss in (LowRankLoss(store, 1.0, seed) for seed in (1, 1, 2))
    )
    assert first == again != other
