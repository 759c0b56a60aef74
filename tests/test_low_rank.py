"""The low-rank loss: its gradient against a dense SVD, its draws against the full sum, and what it does to training."""

import copy
import io
import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sara_core import SaRA, TrainingError, low_rank
from sara_core.low_rank import (
    LowRankLoss, drawing_probabilities, effective_rank, expected_cost, is_matrix, nuclear_norm_gradient,
    singular_values,
)  # fmt: skip
from sara_core.optimizer import check_all_reached
from sara_core.store import Store
from sara_core.support import Segment, Support
from tests.small_models import (
    attached, counted_memory, loss_of, relative_error, repeatable, small_batches, small_net,
)  # fmt: skip

TOLERANCE = 1e-6
SHAPES = {
    "wide": (12, 30),
    "tall": (30, 12),
    "square": (16, 16),
    "convolution": (10, 4, 3, 3),
    "tall convolution": (40, 2, 3, 3),
    "1-d convolution": (9, 5, 3),
    "3-d convolution": (6, 3, 2, 3, 2),
}


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


def segment_of(mask: torch.Tensor) -> Segment:
    """The true elements of a bool tensor of a weight's shape."""
    indices = mask.reshape(-1).nonzero().flatten().to(torch.int32)
    segment, = Support.from_indices({"weight": indices}, {"weight": mask.shape})
    return segment


def dense(segment: Segment, values: torch.Tensor) -> torch.Tensor:
    """P_M in full, fp64."""
    matrix = torch.zeros(segment.rows * segment.columns, dtype=torch.float64)
    matrix[segment.flat()] = values.double()
    return matrix.view(segment.rows, segment.columns)


def by_autograd(segment: Segment, values: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The nuclear norm and its gradient at the support, through a dense SVD in fp64."""
    matrix = dense(segment, values).requires_grad_()
    norm = torch.linalg.svdvals(matrix).sum()
    norm.backward()
    return norm.item(), matrix.grad.view(-1)[segment.flat()]


def by_truncation(segment: Segment, values: torch.Tensor) -> torch.Tensor:
    """U Vᵀ at the support without vanishing singular values, through a dense SVD in fp64."""
    u, s, vh = torch.linalg.svd(dense(segment, values), full_matrices=False)
    rank = int((s > low_rank.VANISHING * s[0]).sum())
    return (u[:, :rank] @ vh[:rank]).reshape(-1)[segment.flat()]


@pytest.mark.parametrize("density", [1.0, 0.6])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_the_gradient_of_a_full_rank_matrix_is_that_of_autograd_through_a_dense_svd(shape, density):
    segment = segment_of(torch.rand(shape) < density)
    values = torch.randn(len(segment))
    assert torch.linalg.matrix_rank(dense(segment, values)) == min(segment.rows, segment.columns)
    norm, gradient = nuclear_norm_gradient(segment, values)
    expected_norm, expected = by_autograd(segment, values)
    assert gradient.dtype == torch.float32 and gradient.shape == values.shape
    assert norm == pytest.approx(expected_norm, rel=TOLERANCE)
    assert relative_error(gradient, expected) < TOLERANCE


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_empty_rows_and_columns_change_nothing(shape):
    mask = torch.rand(shape) < 0.8
    mask[[0, 2, -1]] = False
    mask.view(shape[0], -1)[:, [1, -1]] = False
    segment = segment_of(mask)
    values = torch.randn(len(segment))
    norm, gradient = nuclear_norm_gradient(segment, values)
    expected_norm, expected = by_autograd(segment, values)
    assert norm == pytest.approx(expected_norm, rel=TOLERANCE)
    assert relative_error(gradient, expected) < TOLERANCE


def test_a_large_sparse_matrix_agrees_with_a_dense_svd():
    """Near-square at a low density is the worst case: many singular values, the smallest ones all but vanishing."""
    segment = segment_of(torch.rand(300, 320) < 0.02)
    values = torch.randn(len(segment)) * 1e-3
    _, gradient = nuclear_norm_gradient(segment, values)
    assert relative_error(gradient, by_truncation(segment, values)) < TOLERANCE


@pytest.mark.parametrize("smallest", [1e-2, 1e-4, 1e-5])
def test_singular_values_far_below_the_largest_are_resolved(smallest):
    left, _ = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(60, 24, dtype=torch.float64))
    matrix = (left * torch.logspace(0, torch.tensor(smallest).log10().item(), 24, dtype=torch.float64)) @ right.t()
    segment = segment_of(torch.ones(24, 60, dtype=torch.bool))
    values = matrix.float().reshape(-1)
    _, gradient = nuclear_norm_gradient(segment, values)
    assert relative_error(gradient, by_autograd(segment, values)[1]) < 1e-4


@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
def test_vanishing_singular_values_are_cut_off(shape):
    """Exactly low rank but for the rounding to fp32, whose directions would be as good as random."""
    matrix = torch.randn(shape[0], 3, dtype=torch.float64) @ torch.randn(3, shape[1], dtype=torch.float64)
    segment, values = segment_of(torch.ones(shape, dtype=torch.bool)), matrix.float().reshape(-1)
    norm, gradient = nuclear_norm_gradient(segment, values)
    assert relative_error(gradient, by_truncation(segment, matrix.reshape(-1))) < TOLERANCE
    assert len(singular_values(segment, values)) == 3
    # What makes it a subgradient: no direction longer than 1, and all of the norm along P.
    assert torch.linalg.matrix_norm(gradient.view(shape), 2) < 1 + TOLERANCE
    assert float(gradient @ values) == pytest.approx(norm, rel=1e-5)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_the_support_and_the_rank_it_is_the_truncated_dense_one(data):
    rows, columns = data.draw(st.integers(2, 7)), data.draw(st.integers(2, 7))
    elements = st.integers(-3, 3)  # singular values of small whole numbers are 0 or far from it
    matrix = torch.tensor(data.draw(st.lists(elements, min_size=rows * columns, max_size=rows * columns)))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)))
    segment = segment_of(mask.view(rows, columns))
    values = matrix[mask].float()
    norm, gradient = nuclear_norm_gradient(segment, values)
    assert torch.allclose(gradient.double(), by_truncation(segment, values), atol=1e-6)
    assert norm == pytest.approx(float(torch.linalg.svdvals(dense(segment, values)).sum()), abs=1e-6)


def test_a_matrix_of_zeros_has_no_gradient_and_no_rank():
    segment = segment_of(torch.ones(4, 5, dtype=torch.bool))
    norm, gradient = nuclear_norm_gradient(segment, torch.zeros(20))
    assert norm == 0 and torch.equal(gradient, torch.zeros(20))
    assert effective_rank(segment, torch.zeros(20)) == 0


def test_effective_rank_is_the_exponential_of_the_entropy_of_the_singular_values():
    diagonal = segment_of(torch.eye(4, 6, dtype=torch.bool))
    assert effective_rank(diagonal, torch.ones(4)) == pytest.approx(4)
    assert effective_rank(diagonal, torch.tensor([5.0, 0, 0, 0])) == pytest.approx(1)
    shares = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    expected = float(torch.exp(-(shares * shares.log()).sum()))
    assert effective_rank(diagonal, -3 * shares.float()) == pytest.approx(expected)


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


def test_the_expectation_over_every_possible_draw_is_the_full_sum(monkeypatch):
    store = some_store()
    loss = LowRankLoss(store, weight=0.3, seed=0)
    monkeypatch.setitem(low_rank.BUDGET, "cpu", 20.0)
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
    assert expected_loss == pytest.approx(0.3 * full_loss, rel=TOLERANCE)
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


def test_a_budget_for_everything_gives_the_full_sum_every_time(monkeypatch):
    monkeypatch.setitem(low_rank.BUDGET, "cpu", 1e6)
    store = some_store()
    loss = LowRankLoss(store, weight=2.0, seed=0)
    estimate = loss.add_gradient()
    full_loss, full_gradient = full_sum(store)
    assert estimate == pytest.approx(2 * full_loss)
    assert torch.equal(store.values.grad, 2 * full_gradient)


@pytest.mark.parametrize("budget", [0.01, 1.0, 10.0, 30.0, 60.0])
def test_the_expected_cost_is_the_budget_and_no_other_probabilities_have_less_variance(budget):
    support = some_store().support
    probabilities = drawing_probabilities(support, budget)
    numbers = [number for number, segment in enumerate(support) if is_matrix(segment)]
    chosen = probabilities[numbers]
    segments = [support.segments[number] for number in numbers]
    cost = torch.tensor([expected_cost(segment) for segment in segments], dtype=torch.float64)
    rank = torch.tensor([low_rank.largest_rank(segment) for segment in segments], dtype=torch.float64)
    allowed = budget * sum(segment.rows * segment.columns for segment in support)
    assert float(chosen @ cost) == pytest.approx(min(allowed, float(cost.sum())))
    assert (chosen > 0).all() and (chosen <= 1).all()
    for _ in range(200):
        other = (chosen * torch.exp(0.3 * torch.randn(len(chosen)))).clamp(max=1)
        if float(other @ cost) <= allowed:
            assert float((rank / other).sum()) >= float((rank / chosen).sum()) * (1 - 1e-9)


def test_more_samples_per_step_allow_more_matrices():
    store = some_store()
    one, four = (LowRankLoss(store, 1.0, seed=0, samples_per_step=samples).probabilities() for samples in (1, 4))
    assert torch.allclose(four, 4 * one) and float(four.max()) < 1


def test_what_a_backward_has_not_reached_is_still_found_missing(monkeypatch):
    """The loss gives every weight a gradient, which must not hide a layer that the model does not use."""
    monkeypatch.setitem(low_rank.BUDGET, "cpu", 1e6)
    store = some_store()
    LowRankLoss(store, weight=1.0, seed=0).add_gradient()
    with pytest.raises(TrainingError, match="got no gradient"):
        check_all_reached(store)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_an_impossible_weight_is_refused(weight):
    with pytest.raises(TrainingError, match="0 \\(off\\) or a positive number"):
        LowRankLoss(some_store(), weight, seed=0)


def test_weights_that_are_copied_by_the_host_get_the_same_gradient(monkeypatch):
    monkeypatch.setitem(low_rank.BUDGET, "cpu", 1e6)
    stores = [attached(small_net(), copy_weights=copies) for copies in (False, True)]
    for store in stores:
        with torch.no_grad():
            store.values.copy_(torch.linspace(-1, 1, store.support.nnz))
        LowRankLoss(store, weight=1.0, seed=0).add_gradient()
    assert torch.equal(stores[0].values.grad, stores[1].values.grad)


def test_settled_elements_are_neither_touched_nor_part_of_the_matrix(monkeypatch):
    monkeypatch.setitem(low_rank.BUDGET, "cpu", 1e6)
    store = some_store()
    over = torch.rand(store.support.nnz) < 0.4
    over[store.support.segments[1].span] = True  # nothing of this matrix is left
    before = store.delta()
    store.settle(over)
    LowRankLoss(store, weight=1.0, seed=0).add_gradient()
    expected = torch.cat([
        by_truncation(segment, store.trained_values(number)) if is_matrix(segment) else torch.zeros(len(segment))
        for number, segment in enumerate(store.support)
    ])
    assert relative_error(store.values.grad, expected) < TOLERANCE
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


def trained(weight: float | None, steps: int = 150) -> SaRA:
    """A short training with the low-rank loss, or without one."""
    torch.manual_seed(0)
    model = Bottleneck()
    data, target = torch.randn(32, 16, 6, 6), torch.randn(32, 24)
    ours = SaRA(model, density=0.5, lr=3e-3, weight_gradient="dense")
    loss = None if weight is None else LowRankLoss(ours.store, weight, seed=0)
    for _ in range(steps):
        ours.zero_grad()
        nn.functional.mse_loss(model(data), target).backward()
        if loss is not None:
            loss.add_gradient()
        ours.step()
    return ours


def ranks(ours: SaRA) -> list[float]:
    store = ours.store
    return [effective_rank(segment, store.trained_values(number)) for number, segment in enumerate(store.support)]


def test_a_large_weight_lowers_the_effective_rank_of_every_trained_matrix_and_none_does_not():
    at_first, without, low = ranks(trained(None, steps=0)), ranks(trained(0.0)), ranks(trained(0.03))
    for before, free, regularised in zip(at_first, without, low):
        assert free > 0.8 * before
        assert regularised < 0.7 * free


def test_a_weight_of_zero_leaves_every_bit_of_the_training_alone():
    assert torch.equal(trained(0.0, steps=20).values, trained(None, steps=20).values)
    assert not torch.equal(trained(1e-3, steps=20).values, trained(None, steps=20).values)


def test_n_plus_m_steps_are_n_steps_saved_and_m_steps_continued():
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
    assert 0 < sum(estimate > 0 for estimate in expected)

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


@pytest.mark.parametrize("shape", [(64, 16384), (16384, 64), (64, 1024, 4, 4)])
def test_memory_follows_the_elements_and_the_shorter_side_not_the_weight(shape):
    """At 0.6 %: at most 150 bytes per element, 16 per row and column, and six matrices over the shorter side."""
    segment = segment_of(torch.rand(shape) < 0.006)
    values = torch.randn(len(segment))
    nuclear_norm_gradient(segment, values)
    shorter = min(segment.rows, segment.columns)
    with counted_memory() as memory:
        nuclear_norm_gradient(segment, values)
    bound = 150 * len(segment) + 16 * (segment.rows + segment.columns) + 6 * 8 * shorter**2
    assert memory.peak < bound < torch.Size(shape).numel() * 4 / 2
