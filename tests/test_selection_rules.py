"""The rules that the smallest weights are compared with: largest, random, by gradient; and shares per layer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sara_core import SaRA, SelectionError, gradient_scores, learning_rate_for, select, selection, weight_gradient
from sara_core.attachment import attached_for_gradients, trainable_weights
from sara_core.gradient_scores import GradientScores
from tests.small_models import counted_memory, every_bit, loss_of, repeatable, same_bits, small_batches, small_net
from tests.test_selection import DTYPES, chosen, magnitudes, model_weights


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


# Largest magnitudes

@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 7, 40, 500, 800, 900])
def test_count_takes_exactly_the_n_largest_and_among_equals_the_first(dtype, n):
    weights = model_weights(dtype)
    result = select(weights, count=n, rule="largest")
    assert np.array_equal(chosen(result, weights), np.sort(np.argsort(-magnitudes(weights), kind="stable")[:n]))
    assert result.count == n and result.theta is None
    assert result.rule == {"rule": "largest", "count": n}


@pytest.mark.parametrize("guess", [0.0, -0.0, -1e-6, -0.3, -100.0])
@pytest.mark.parametrize("n", [3, 300, 900])
def test_a_wrong_guess_of_the_bound_is_corrected(monkeypatch, guess, n):
    weights = model_weights()
    monkeypatch.setattr(selection, "_sampled_bound", lambda *_: guess)
    result = select(weights, count=n, rule="largest")
    assert np.array_equal(chosen(result, weights), np.sort(np.argsort(-magnitudes(weights), kind="stable")[:n]))


def test_infinite_weights_are_the_largest_and_nan_the_last():
    weights = {"w": torch.tensor([1.0, float("nan"), -float("inf"), 0.0, -2.0, float("inf")])}
    for n, expected in [(1, [2]), (2, [2, 5]), (3, [2, 4, 5]), (5, [0, 2, 3, 4, 5])]:
        assert select(weights, count=n, rule="largest").indices["w"].tolist() == expected
    with pytest.raises(SelectionError, match="NaN"):
        select({"w": torch.full((9,), float("nan"))}, count=3, rule="largest")


# Random

def test_random_takes_exactly_n_and_the_same_ones_for_a_seed():
    weights = model_weights()
    results = [select(weights, density=0.1, rule="random", seed=seed) for seed in (5, 5, 6)]
    positions = [chosen(result, weights) for result in results]
    assert all(len(np.unique(p)) == round(0.1 * len(magnitudes(weights))) for p in positions)
    assert np.array_equal(positions[0], positions[1]) and not np.array_equal(positions[0], positions[2])
    assert results[0].rule == {"rule": "random", "density": 0.1, "seed": 5} and results[0].theta is None
    for index in results[0].indices.values():
        assert index.dtype == torch.int32 and bool((index[1:] > index[:-1]).all())


@pytest.mark.parametrize("n", [100, 500, 900])
def test_every_element_is_as_likely_as_any_other(n):
    weights = {"a": torch.zeros(10, 30), "b": torch.zeros(700)}
    counts = np.zeros(1000)
    for seed in range(300):
        counts[chosen(select(weights, count=n, rule="random", seed=seed), weights)] += 1
    expected, deviation = 300 * n / 1000, (300 * n / 1000 * (1 - n / 1000)) ** 0.5
    assert counts.sum() == 300 * n
    assert np.abs(counts - expected).max() <= 5 * deviation
    assert abs(counts[:300].mean() - expected) <= 5 * deviation / 300**0.5


def test_the_random_choice_depends_on_nothing_but_seed_and_sizes():
    weights = model_weights()
    others = {name: torch.zeros(w.shape, dtype=torch.bfloat16) for name, w in weights.items()}
    first, second = (select(w, count=200, rule="random", seed=1) for w in (weights, others))
    assert np.array_equal(chosen(first, weights), chosen(second, weights))


@pytest.mark.parametrize("rule", ["largest", "random"])
def test_nothing_of_the_size_of_a_weight_is_allocated(monkeypatch, rule):
    monkeypatch.setattr(selection, "CHUNK", 1 << 12)
    monkeypatch.setattr(selection, "SAMPLE", 1 << 12)
    weights = {name: torch.randn(256, 64, 4, 4) for name in "abcd"}
    with counted_memory() as memory:
        select(weights, count=400, rule=rule)
    assert memory.largest <= 8 << 12
    assert memory.peak <= weights["a"].numel() * 4 // 8


# Per layer

@pytest.mark.parametrize("rule", ["smallest", "largest", "random"])
@pytest.mark.parametrize("density", [0.001, 0.1, 0.6])
def test_per_layer_every_weight_gives_its_share_and_one_at_least(rule, density):
    weights = model_weights()
    result = select(weights, density=density, rule=rule, per_layer=True)
    assert {n: len(i) for n, i in result.indices.items()} == {
        name: max(1, round(density * weight.numel())) for name, weight in weights.items()
    }
    assert result.theta is None and result.rule["per_layer"] is True and result.rule["rule"] == rule
    if rule != "random":
        sign = 1 if rule == "smallest" else -1
        for name, weight in weights.items():
            order = np.argsort(sign * magnitudes({name: weight}), kind="stable")
            assert np.array_equal(result.indices[name].numpy(), np.sort(order[:len(result.indices[name])]))


# What contradicts itself

@pytest.mark.parametrize("options, message", [
    ({"threshold": 0.1, "rule": "largest"}, "threshold divides small weights.*'largest'.*by density or count"),
    ({"threshold": 0.1, "rule": "random"}, "threshold divides"),
    ({"threshold": 0.1, "rule": "gradient"}, "threshold divides"),
    ({"threshold": 0.1, "per_layer": True}, "Per layer only a density.*in place of the threshold"),
    ({"count": 5, "per_layer": True}, "Per layer only a density.*in place of the count"),
    ({"count": 5, "rule": "biggest"}, "no selection rule 'biggest'.*smallest, largest, random, gradient"),
    ({"count": 5, "rule": "gradient"}, "needs a loss"),
    ({"count": 5, "by_gradient": lambda *_: {}}, "needs a loss"),
    ({"density": 1.0, "rule": "random"}, "full fine-tuning"),
    ({"density": 1.0, "per_layer": True}, "full fine-tuning"),
    ({"density": 1e-9, "rule": "largest"}, "selects nothing"),
    ({"count": -1, "rule": "random"}, "above 0"),
])  # fmt: skip
def test_contradictions_are_errors(options, message):
    with pytest.raises(SelectionError, match=message):
        select(model_weights(), **options)


def test_without_a_threshold_the_learning_rate_is_that_of_the_papers_largest():
    optimizer = SaRA(small_net(), density=0.1, rule="largest")
    assert optimizer.param_groups[0]["lr"] == learning_rate_for(None) == learning_rate_for(2e-3)
    assert SaRA(small_net(), density=0.1, rule="random", lr=0.5).param_groups[0]["lr"] == 0.5


# By gradient

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
    tensors = {name: location.weight for name, location in weights.items()}
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
    for name, location in trainable_weights(model).items():
        assert_largest(result.indices, scores, [name], max(1, round(0.1 * location.weight.numel())))


@pytest.mark.parametrize("guess", [1e9, 1.0, 1e-12])
def test_a_wrong_bound_is_corrected(monkeypatch, guess):
    monkeypatch.setattr(gradient_scores, "_bound", lambda *_: guess)
    batch, = small_batches(1)
    model = small_net()
    names = list(trainable_weights(model))
    result = by_gradient(model, lambda m: loss_of(m, batch), count=50)
    assert_largest(result.indices, dense_scores(small_net(), lambda m: loss_of(m, batch)), names, 50)


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


def test_a_loss_that_is_no_number_is_an_error():
    with pytest.raises(SelectionError, match="is nan"):
        by_gradient(small_net(), lambda model: model(torch.full((1, 3, 8, 8), float("nan"))).sum(), count=10)


def test_fewer_elements_with_a_gradient_than_asked_for_are_an_error():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    with torch.no_grad():
        model[1].weight.zero_()  # neither its own products nor a gradient of the first layer
    with pytest.raises(SelectionError, match="Only 0 elements have a gradient.*fewer than the 5"):
        by_gradient(model, lambda network: network(torch.ones(2, 6)).sum(), count=5)


def test_only_elements_with_a_gradient_are_taken():
    """Half of the inputs are 0, so half of the gradient is; there are just enough others."""
    x = torch.cat([torch.zeros(4, 3), torch.randn(4, 3)], 1)
    result = by_gradient(nn.Sequential(nn.Linear(6, 6)), lambda model: model(x).square().sum(), count=18)
    assert result.indices["0.weight"].tolist() == [6 * row + column for row in range(6) for column in (3, 4, 5)]


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
    with pytest.raises(SelectionError, match="no other"):
        SaRA(small_net(), density=0.1, loss=lambda: torch.zeros(()))


def test_half_precision_is_scored_in_single():
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
    assert mine >= 0.98 * best


def test_a_loss_that_does_not_use_the_weights_is_an_error():
    with pytest.raises(SelectionError, match="has no gradient"):
        by_gradient(small_net(), lambda model: torch.zeros(()), count=2)
