"""The rules that the smallest weights are compared with: the largest and random ones; and shares per layer."""

import math

import numpy as np
import pytest
import torch

from sara_core import SaRA, SelectionError, learning_rate_for, select
from sara_core.selection import magnitudes as search
from tests.core.selection.test_select import DTYPES, chosen, magnitudes, model_weights, stop_after
from tests.support.small_models import counted_memory, repeatable, small_net


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


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
    monkeypatch.setattr(search, "_sampled_bound", lambda *_: guess)
    stop_after(500 * len(weights), monkeypatch)
    result = select(weights, count=n, rule="largest")
    assert np.array_equal(chosen(result, weights), np.sort(np.argsort(-magnitudes(weights), kind="stable")[:n]))


@pytest.mark.parametrize("rule", ["smallest", "largest", "random"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_no_finite_number_is_chosen_by_no_rule_and_counted(rule, dtype):
    weights = {"w": torch.tensor([1.0, math.nan, -math.inf, 0.0, -2.0, math.inf], dtype=dtype)}
    sizes = [0, 3, 4] if rule == "smallest" else [4, 0, 3]
    for n in (1, 2, 3):
        selection = select(weights, count=n, rule=rule)
        positions = selection.indices["w"].tolist()
        assert selection.not_finite == 3 and len(positions) == n and set(positions) <= {0, 3, 4}
        if rule != "random":
            assert positions == sorted(sorted(sizes, key=lambda place: abs(weights["w"][place].item()),
                                              reverse=rule == "largest")[:n])  # fmt: skip
    with pytest.raises(SelectionError, match="Fewer than 4 of the weights are numbers, only 3.*damaged"):
        select(weights, count=4, rule=rule)


def test_random_draws_evenly_from_what_is_finite():
    weights = {"a": torch.randn(40, 25), "b": torch.randn(30, 10).t(), "c": torch.full((50,), math.nan)}
    weights["a"][3] = math.inf
    weights["b"][:, ::2] = math.nan
    selections = [select(weights, count=800, rule="random", seed=seed) for seed in range(3)]
    for selection in selections:
        assert selection.not_finite == 25 + 150 + 50 and "c" not in selection.indices
        for name, index in selection.indices.items():
            assert weights[name].reshape(-1)[index.long()].isfinite().all()
        assert len(selection.indices["a"]) == pytest.approx(800 * 975 / 1125, abs=40)
    per_layer = select({name: weights[name] for name in "ab"}, density=0.4, per_layer=True, rule="random")
    assert {name: len(index) for name, index in per_layer.indices.items()} == {"a": 400, "b": 120}


def test_a_rule_of_ones_own_is_told_what_is_not_finite_and_may_not_choose_it():
    weights, told = {"a": torch.tensor([math.nan, 1.0, 2.0, 3.0]), "b": torch.ones(4)}, []

    def first(request):
        told.append(dict(request.not_finite))
        return {"a": torch.tensor([0, 1])}

    with pytest.raises(SelectionError, match="first' chose elements of 'a' that are NaN or infinite"):
        select(weights, count=2, rule=first)
    assert told == [{"a": 1}]


def test_a_weight_whose_elements_share_memory_is_refused_by_name():
    weights = {"fine": torch.randn(4, 4).t(), "expanded": torch.randn(4, 1).expand(4, 8)}
    with pytest.raises(SelectionError, match="'expanded' has several elements at one place in memory"):
        select(weights, density=0.5)


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
    monkeypatch.setattr(search, "CHUNK", 1 << 12)
    monkeypatch.setattr(search, "SAMPLE", 1 << 12)
    weights = {name: torch.randn(256, 64, 4, 4) for name in "abcd"}
    with counted_memory() as memory:
        select(weights, count=400, rule=rule)
    assert memory.largest <= 8 << 12
    assert memory.peak <= weights["a"].numel() * 4 // 8


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


@pytest.mark.parametrize("options, message", [
    ({"threshold": 0.1, "rule": "largest"}, "threshold divides small weights.*'largest'.*by density or count"),
    ({"threshold": 0.1, "rule": "random"}, "threshold divides"),
    ({"threshold": 0.1, "rule": "gradient"}, "threshold divides"),
    ({"threshold": 0.1, "per_layer": True}, "Per layer only a density.*in place of the threshold"),
    ({"count": 5, "per_layer": True}, "Per layer only a density.*in place of the count"),
    ({"count": 5, "rule": "biggest"}, "no selection rule 'biggest'.*smallest, largest, random, gradient"),
    ({"count": 5, "rule": "gradient"}, "needs a loss"),
    ({"count": 5, "by_gradient": lambda *_: {}}, r"'smallest' looks at no gradient.*\(gradient\)"),
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
