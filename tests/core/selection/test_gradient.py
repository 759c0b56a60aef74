"""Elements chosen by |w · ∂L/∂w| are those of dense gradients, without any dense gradient, and leave no trace."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sara_core import SaRA, SelectionError, select
from sara_core.backward import weight_gradient
from sara_core.backward.attach import attached_for_gradients
from sara_core.selection import gradient as gradient_scores
from sara_core.selection.gradient import GradientScores
from sara_core.selection.trainable import trainable_weights
from tests.support.small_models import (
    counted_memory, every_bit, loss_of, repeatable, same_bits, small_batches, small_net,
)  # fmt: skip


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


def dense_scores(model, loss):
    model.zero_grad()
    loss(model).backward()
    return {n: (p * p.grad).detach().abs() for n, p in model.named_parameters() if p.grad is not None}


def largest_scores(scores, names, n):
    """The oracle, on dense gradients: the lowest score chosen, and name → positions of what is clearly above it."""
    flat = torch.cat([scores[name].reshape(-1) for name in names])
    lowest = float(flat.topk(n).values[-1])
    return lowest, {name: (scores[name].reshape(-1) > 1.001 * lowest).nonzero().view(-1) for name in names}


def assert_largest(indices, scores, names, n):
    assert sum(len(indices[name]) for name in names if name in indices) == n
    lowest, certain = largest_scores(scores, names, n)
    for name in names:
        index = indices.get(name, torch.empty(0, dtype=torch.int32)).long()
        assert bool((index[1:] > index[:-1]).all())
        assert torch.isin(certain[name], index).all(), name
        assert (scores[name].reshape(-1)[index] > 0.999 * lowest).all(), name


def by_gradient(model, loss, **options):
    patterns = {key: options.pop(key) for key in ("include", "preset") if key in options}
    weights = trainable_weights(model, **patterns)
    scores = GradientScores(
        lambda store: attached_for_gradients(model, store, weights), lambda: loss(model), torch.device("cpu")
    )
    tensors = {name: holder.weight for name, holder in weights.items()}
    return select(tensors, rule="gradient", by_gradient=scores.largest, **options)


@pytest.mark.parametrize("n", [1, 30, 400])
@pytest.mark.parametrize("sample", [64, 1 << 20])
def test_the_elements_with_the_largest_products_of_weight_and_gradient(monkeypatch, n, sample):
    """small_net uses one module twice and has a tied weight: their gradients are sums."""
    monkeypatch.setattr(gradient_scores, "SAMPLE", sample)
    monkeypatch.setattr(weight_gradient, "DENSE_BYTES", 256)
    batch, = small_batches(1)
    model = small_net()
    names = list(trainable_weights(model))
    result = by_gradient(model, lambda m: loss_of(m, batch), count=n)
    assert result.rule == {"rule": "gradient", "count": n} and result.theta is None
    assert_largest(result.indices, dense_scores(small_net(), lambda m: loss_of(m, batch)), names, n)


def test_a_loss_over_several_batches_is_one_gradient():
    batches = small_batches(3)

    def loss(model):
        return sum(loss_of(model, batch) for batch in batches)

    model = small_net()
    names = list(trainable_weights(model))
    assert_largest(by_gradient(model, loss, count=100).indices, dense_scores(small_net(), loss), names, 100)


def test_biases_and_norms_are_scored_too():
    batch, = small_batches(1)
    preset = "all layers, biases and norms"
    model = small_net()
    names = list(trainable_weights(model, preset=preset))
    result = by_gradient(model, lambda m: loss_of(m, batch), count=200, preset=preset)
    assert_largest(result.indices, dense_scores(small_net(), lambda m: loss_of(m, batch)), names, 200)
    assert "norm.weight" in result.indices


def test_per_layer_each_weight_gives_its_own():
    batch, = small_batches(1)
    model = small_net()
    result = by_gradient(model, lambda m: loss_of(m, batch), density=0.1, per_layer=True)
    scores = dense_scores(small_net(), lambda m: loss_of(m, batch))
    for name, holder in trainable_weights(model).items():
        assert_largest(result.indices, scores, [name], max(1, round(0.1 * holder.weight.numel())))


@pytest.mark.parametrize("guess", [1e9, 1.0, 1e-12])
def test_a_wrong_bound_is_corrected(monkeypatch, guess):
    monkeypatch.setattr(gradient_scores, "_bound", lambda *_: guess)
    batch, = small_batches(1)
    model = small_net()
    names = list(trainable_weights(model))
    result = by_gradient(model, lambda m: loss_of(m, batch), count=50)
    assert_largest(result.indices, dense_scores(small_net(), lambda m: loss_of(m, batch)), names, 50)


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.LayerNorm(4)], ids=["linear", "norm"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_of_half_precision_parameters_are_formed_in_single(dtype, layer):
    """Biases and norms get theirs all at once. In float16 these would all be 0."""
    model = nn.Sequential(copy.deepcopy(layer)).to(dtype)
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([1.0, 4.0, 3.0, 2.0]) * 2**-14)
    result = by_gradient(model, lambda m: (m(torch.zeros(2, 4).to(dtype)) * 2**-15).float().sum(), count=2,
                         include="bias")  # fmt: skip
    assert result.indices["0.bias"].tolist() == [1, 2]


class Noisy(nn.Module):
    """Draws from torch's global random numbers, keeps statistics, and recomputes a block in the backward."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.block = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        x = self.dropout(self.norm(self.first(x + torch.randn_like(x))))
        return checkpoint(self.block, x, use_reentrant=False)


def test_the_model_and_the_random_numbers_are_left_as_they_were():
    model = Noisy().train()
    model.first.bias.requires_grad_(False)
    model.norm.weight.grad = torch.ones(6)
    before, flags = every_bit(model), [p.requires_grad for p in model.parameters()]
    seen = [(type(module), sorted(vars(module))) for module in model.modules()]
    state, calls = torch.get_rng_state(), []

    def loss(network):
        calls.append(network(torch.ones(8, 6)).square().mean())
        return calls[-1]

    result = by_gradient(model, loss, count=10)
    assert len(calls) == 3 and len({float(value.detach()) for value in calls}) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert same_bits(every_bit(model), before) and [p.requires_grad for p in model.parameters()] == flags
    assert [(type(module), sorted(vars(module))) for module in model.modules()] == seen
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["norm.weight"]
    assert torch.equal(model.norm.weight.grad, torch.ones(6))
    assert_largest(result.indices, dense_scores(model, loss), ["first.weight", "block.weight"], 10)


@pytest.mark.parametrize("where", ["loss", "backward"])
def test_an_error_leaves_the_model_as_it_was(where):
    model = small_net()
    before, seen = every_bit(model), [type(module) for module in model.modules()]

    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise KeyboardInterrupt

    def loss(network):
        value = Failing.apply(loss_of(network, small_batches(1)[0]))
        if where == "loss":
            raise KeyboardInterrupt
        return value

    with pytest.raises(KeyboardInterrupt):
        by_gradient(model, loss, count=10)
    assert same_bits(every_bit(model), before) and [type(module) for module in model.modules()] == seen
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_another_loss_each_time_is_an_error():
    batches = iter(small_batches(9))
    with pytest.raises(SelectionError, match="must be the same each time"):
        by_gradient(small_net(), lambda model: 10 * loss_of(model, next(batches)), count=10)


def test_the_rounding_of_a_large_loss_is_no_other_loss():
    batch, = small_batches(1)
    passes = iter(range(9))
    result = by_gradient(small_net(), lambda model: loss_of(model, batch) + 1000 + next(passes), count=10)
    assert result.count == 10


def test_a_loss_that_comes_to_0_chooses_as_well():
    batch, model = small_batches(1)[0], small_net()

    def loss(network):
        value = loss_of(network, batch)
        return value - value.detach()

    names = list(trainable_weights(model))
    assert_largest(by_gradient(model, loss, count=50).indices, dense_scores(small_net(), loss), names, 50)


@pytest.mark.parametrize("share, is_the_same", [(0.009, True), (0.011, False)])
def test_losses_that_differ_by_more_than_a_hundredth_are_not_the_same(share, is_the_same):
    passes = iter(range(9))

    def loss(model):
        value = model(torch.ones(2, 6)).square().sum()
        return value * (1 + share * min(1, next(passes)))

    if is_the_same:
        assert by_gradient(nn.Sequential(nn.Linear(6, 6)), loss, count=5).count == 5
    else:
        with pytest.raises(SelectionError, match="must be the same each time"):
            by_gradient(nn.Sequential(nn.Linear(6, 6)), loss, count=5)


def test_a_loss_that_is_no_number_is_an_error():
    with pytest.raises(SelectionError, match="is nan"):
        by_gradient(small_net(), lambda model: model(torch.full((1, 3, 8, 8), float("nan"))).sum(), count=10)


def test_a_gradient_that_is_not_finite_is_an_error():
    model, x = small_net(dtype=torch.float16), torch.randn(2, 3, 8, 8).half()
    with pytest.raises(SelectionError, match="gradient that is to choose the weights is not finite.*bf16 or fp32"):
        by_gradient(model, lambda network: 1e6 * network(x).float().square().mean(), count=10)


def test_fewer_elements_with_a_gradient_than_asked_for_are_an_error():
    model, x = nn.Linear(6, 1), torch.zeros(1, 6)
    x[0, 1:4] = 0.5
    with pytest.raises(SelectionError, match="Only 3 elements have a gradient.*fewer than the 5"):
        by_gradient(model, lambda network: network(x).sum(), count=5)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    with torch.no_grad():
        model[1].weight.zero_()  # neither its own products nor a gradient of the first layer
    with pytest.raises(SelectionError, match="Only 0 elements have a gradient.*fewer than the 5"):
        by_gradient(model, lambda network: network(torch.ones(2, 6)).sum(), count=5)


def test_elements_without_a_gradient_are_not_even_looked_at(monkeypatch):
    """Half of the inputs are 0, so half of the gradient is; there are just enough others."""
    found, candidates = [], GradientScores._candidates

    def watched(*args):
        found.append(candidates(*args))
        return found[-1]

    monkeypatch.setattr(GradientScores, "_candidates", watched)
    x = torch.cat([torch.zeros(4, 3), torch.randn(4, 3)], 1)
    result = by_gradient(nn.Sequential(nn.Linear(6, 6)), lambda model: model(x).square().sum(), count=18)
    expected = [6 * row + column for row in range(6) for column in (3, 4, 5)]
    assert result.indices["0.weight"].tolist() == expected
    assert [positions["0.weight"].tolist() for positions in found] == [expected]


@pytest.mark.parametrize("seed", range(5))
def test_candidates_found_in_low_precision_do_not_change_the_choice(monkeypatch, seed):
    batch, = small_batches(1)
    model = small_net()
    names, scores = list(trainable_weights(model)), dense_scores(small_net(), lambda m: loss_of(m, batch))
    lowest, _ = largest_scores(scores, names, 500)
    noise, note = torch.Generator().manual_seed(seed), gradient_scores._CandidateStore._note

    def note_imprecisely(self, number, start, weight, gradient):
        error = 1 + 0.04 * (2 * torch.rand(gradient.shape, generator=noise) - 1)
        note(self, number, start, weight, gradient * error)

    monkeypatch.setattr(gradient_scores._CandidateStore, "_note", note_imprecisely)
    monkeypatch.setattr(gradient_scores, "_bound", lambda *_: 0.99 * lowest)
    assert_largest(by_gradient(model, lambda m: loss_of(m, batch), count=500).indices, scores, names, 500)


WIDTH, LAYERS = 1024, 4


def test_no_dense_gradient_outlives_a_layers_backward(monkeypatch):
    monkeypatch.setattr(weight_gradient, "DENSE_BYTES", 16 << 10)
    monkeypatch.setattr(gradient_scores, "SAMPLE", 1 << 14)
    model, x = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]), torch.randn(4, WIDTH)
    with counted_memory() as memory:
        by_gradient(model, lambda network: network(x).square().sum(), count=1000)
    weight = 4 * WIDTH * WIDTH
    assert memory.largest <= weight // 4 and memory.peak <= weight


def test_the_one_line_trains_what_the_gradient_chose():
    batch, = small_batches(1)
    model = small_net()
    optimizer = SaRA(model, density=0.1, rule="gradient", loss=lambda: loss_of(model, batch), lr=1e-2)
    indices = {segment.name: segment.flat() for segment in optimizer.store.support}
    names = list(trainable_weights(small_net()))
    n = optimizer.selection.count
    assert_largest(indices, dense_scores(small_net(), lambda m: loss_of(m, batch)), names, n)
    assert optimizer.values.grad is None and not optimizer.values.any()
    before = loss_of(model, batch).item()
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    assert loss_of(model, batch).item() < before
    optimizer.detach(restore=True)
    assert same_bits(every_bit(model), every_bit(small_net()))


def test_a_loss_without_the_rule_is_an_error():
    with pytest.raises(SelectionError, match="looks at no gradient"):
        SaRA(small_net(), density=0.1, loss=lambda: torch.zeros(()))


def test_half_precision_is_scored_in_single(monkeypatch):
    scored, dtypes = GradientScores._scores, set()

    def seen(*arguments):
        scores = scored(*arguments)
        dtypes.update(score.dtype for score in scores.values())
        return scores

    monkeypatch.setattr(GradientScores, "_scores", seen)
    batch, = small_batches(1)
    model = small_net(dtype=torch.bfloat16)
    half = tuple(tensor.bfloat16() for tensor in batch)

    def loss(network):
        return F.mse_loss(network(half[0]).float(), half[1].float())

    result = by_gradient(model, loss, count=100)
    scores = dense_scores(small_net(dtype=torch.bfloat16), loss)
    flat = torch.cat([scores[name].reshape(-1).float() for name in trainable_weights(model)])
    best = flat.topk(100).values.sum()
    mine = sum(scores[name].reshape(-1)[index.long()].float().sum() for name, index in result.indices.items())
    assert mine >= 0.98 * best and dtypes == {torch.float32}


def test_a_loss_that_does_not_use_the_weights_is_an_error():
    with pytest.raises(SelectionError, match="has no gradient"):
        by_gradient(small_net(), lambda model: torch.zeros(()), count=2)
