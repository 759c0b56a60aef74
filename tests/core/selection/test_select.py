"""Selection against a brute-force oracle: exactly the smallest elements, exactly as many as asked for."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sara_core import SelectionError, select
from sara_core.selection import magnitudes as search
from sara_core.selection.select import check_selectable
from tests.support.small_models import counted_memory

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def model_weights(dtype=torch.float32, seed=0):
    """Weights of several shapes and memory layouts, with equal magnitudes and zeros among them."""
    torch.manual_seed(seed)
    weights = {
        "linear": torch.randn(17, 23),
        "conv": torch.randn(6, 5, 3, 3).to(memory_format=torch.channels_last),
        "transposed": torch.randn(9, 14).t(),
        "sliced": torch.randn(8, 20)[:, 3:13],
        "video": torch.randn(4, 2, 3, 2, 2),
        "vector": torch.randn(31),
    }
    weights["linear"][3:5] = 0
    weights["conv"][2, 1] = -0.125
    weights["vector"][::4] = 0.125
    return {name: weight.to(dtype) for name, weight in weights.items()}


def magnitudes(weights):
    """|w| in fp32 of all weights in logical order, one after the other."""
    return np.concatenate([w.abs().float().contiguous().view(-1).numpy() for w in weights.values()])


def chosen(result, weights):
    """The selected positions in the concatenation of all weights."""
    starts = dict(zip(weights, np.cumsum([0] + [w.numel() for w in weights.values()])))
    return np.concatenate([result.indices[name].numpy() + starts[name] for name in weights if name in result.indices])


def n_smallest(weights, n):
    """The oracle: a stable sort, so that among equals the first ones in order are taken."""
    return np.sort(np.argsort(magnitudes(weights), kind="stable")[:n])


@pytest.mark.parametrize("dtype", DTYPES)
def test_threshold_takes_what_is_below_it(dtype):
    weights = model_weights(dtype)
    result = select(weights, threshold=0.125)
    below = magnitudes(weights) < np.float32(0.125)
    assert np.array_equal(chosen(result, weights), below.nonzero()[0])
    assert result.theta == 0.125
    assert result.candidates == len(below) and result.count == below.sum()
    assert result.density == below.sum() / len(below)


def test_a_weight_exactly_at_the_threshold_is_not_taken():
    result = select({"w": torch.tensor([0.1, -0.125, 0.125, 0.5, -0.1])}, threshold=0.125)
    assert result.indices["w"].tolist() == [0, 4]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 7, 40, 47, 60, 500, 900])
def test_count_takes_exactly_the_n_smallest_and_among_equals_the_first(dtype, n):
    weights = model_weights(dtype)
    result = select(weights, count=n)
    expected = n_smallest(weights, n)
    assert np.array_equal(chosen(result, weights), expected)
    assert result.theta == magnitudes(weights)[expected].max()
    assert result.count == n


@pytest.mark.parametrize("density", [0.001, 0.05, 0.5, 0.99])
def test_density_is_a_count(density):
    weights = model_weights()
    total = sum(weight.numel() for weight in weights.values())
    result, counted = select(weights, density=density), select(weights, count=round(density * total))
    assert np.array_equal(chosen(result, weights), chosen(counted, weights))
    assert result.theta == counted.theta
    assert result.rule == {"rule": "smallest", "density": density}
    assert counted.rule == {"rule": "smallest", "count": round(density * total)}


@pytest.mark.parametrize("n", [1, 19, 20, 21, 39])
def test_all_elements_equal_and_all_zero(n):
    for value in (0.0, 0.25):
        weights = {"a": torch.full((4, 5), value), "b": -torch.full((4, 5), value)}
        assert chosen(select(weights, count=n), weights).tolist() == list(range(n))


@pytest.mark.bits
@pytest.mark.parametrize("chunk", [1, 3, 25, 46, 10_000])
def test_chunk_boundaries_change_nothing(monkeypatch, chunk):
    weights = model_weights()
    monkeypatch.setattr(search, "CHUNK", chunk)
    for n in (123, 900):
        assert np.array_equal(chosen(select(weights, count=n), weights), n_smallest(weights, n))
    below = (magnitudes(weights) < np.float32(0.2)).nonzero()[0]
    assert np.array_equal(chosen(select(weights, threshold=0.2), weights), below)


@pytest.mark.parametrize("guess", [0.0, 1e-6, 0.3, 100.0])
def test_a_wrong_guess_of_the_bound_is_corrected(monkeypatch, guess):
    weights = model_weights()
    for name in ("linear", "conv"):
        weights[name][weights[name] == 0] = 0.5
    monkeypatch.setattr(search, "_sampled_bound", lambda *_: guess)
    for n in (3, 300, 900):
        assert np.array_equal(chosen(select(weights, count=n), weights), n_smallest(weights, n))


def test_a_small_sample_still_gives_exactly_the_n_smallest(monkeypatch):
    monkeypatch.setattr(search, "SAMPLE", 20)
    weights = model_weights()
    for n in (1, 200, 900):
        assert np.array_equal(chosen(select(weights, count=n), weights), n_smallest(weights, n))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    values=st.lists(st.lists(st.integers(-4, 4), min_size=1, max_size=24), min_size=1, max_size=5),
    share=st.floats(0.01, 0.99), chunk=st.integers(1, 30), sample=st.integers(1, 30),
)  # fmt: skip
def test_any_weights_with_many_ties(values, share, chunk, sample):
    weights = {str(i): torch.tensor(v, dtype=torch.float32) / 8 for i, v in enumerate(values)}
    total = sum(len(v) for v in values)
    n = max(1, round(share * total))
    if n == total:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "CHUNK", chunk)
        patch.setattr(search, "SAMPLE", sample)
        assert np.array_equal(chosen(select(weights, count=n), weights), n_smallest(weights, n))


def test_indices_are_sorted_unique_int32_in_the_order_of_the_weights():
    weights = model_weights()
    result = select(weights, density=0.4)
    assert list(result.indices) == [name for name in weights if name in result.indices]
    for index in result.indices.values():
        assert index.dtype == torch.int32
        assert bool((index[1:] > index[:-1]).all())
    again = select(weights, density=0.4)
    assert list(again.indices) == list(result.indices)
    assert all(torch.equal(again.indices[name], index) for name, index in result.indices.items())


def test_the_memory_layout_of_a_weight_does_not_change_its_positions():
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    plain = select({"w": weight}, density=0.2).indices["w"]
    assert torch.equal(select({"w": weight.to(memory_format=torch.channels_last)}, density=0.2).indices["w"], plain)


def test_a_weight_without_a_chosen_element_is_absent():
    result = select({"large": torch.full((3, 3), 5.0), "small": torch.full((3, 3), 0.1)}, threshold=1.0)
    assert list(result.indices) == ["small"]


@pytest.mark.parametrize("rule", [{"threshold": 1.0}, {"count": 4}])
def test_a_weight_without_elements_takes_no_part(rule):
    weights = {"empty": torch.empty(0, 3), "narrow": torch.empty(3, 0), "full": torch.full((3, 3), 0.1)}
    weights["full"][2, 2:] = 2.0
    assert list(select(weights, **rule).indices) == ["full"]


def test_the_weights_are_only_read():
    weights = model_weights()
    before = {name: weight.clone() for name, weight in weights.items()}
    select(weights, count=100)
    select(weights, threshold=0.1)
    assert all(torch.equal(weights[name], before[name]) for name in weights)


@pytest.mark.parametrize("rule", [{"threshold": 1e-4}, {"count": 400}])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_nothing_of_the_size_of_a_weight_is_allocated(monkeypatch, rule, layout):
    monkeypatch.setattr(search, "CHUNK", 1 << 12)
    monkeypatch.setattr(search, "SAMPLE", 1 << 12)
    torch.manual_seed(0)
    weights = {name: torch.randn(256, 64, 4, 4).to(memory_format=layout) for name in "abcd"}
    weight_bytes = weights["a"].numel() * 4
    with counted_memory() as memory:
        select(weights, **rule)
    assert memory.largest <= 8 << 12  # one chunk with 64-bit positions
    assert memory.peak <= weight_bytes // 8


@pytest.mark.parametrize("rule", [{"threshold": 1e-2}, {"count": 2000}])
def test_the_magnitudes_of_all_chunks_share_one_buffer(monkeypatch, rule):
    """A buffer per chunk, freed between index vectors that are kept, once grew a process by up to 1.8 GiB."""
    monkeypatch.setattr(search, "CHUNK", 1 << 14)
    monkeypatch.setattr(search, "SAMPLE", 1 << 11)
    torch.manual_seed(0)
    weights = {name: torch.randn(64, 1024) for name in "abcd"}
    with counted_memory() as memory:
        select(weights, **rule)
    assert [size for size in memory.sizes if size >= 4 << 14] == [4 << 14]


def stop_after(calls, monkeypatch):
    """Turn a search that never ends into a failure."""
    positions = iter(range(calls))
    find = search._Magnitudes.positions

    def limited(*args):
        assert next(positions, None) is not None, "the search does not end"
        return find(*args)

    monkeypatch.setattr(search._Magnitudes, "positions", limited)


def test_weights_that_are_not_numbers_are_the_last_to_be_chosen(monkeypatch):
    stop_after(100, monkeypatch)
    weights = {"w": torch.randn(100, generator=torch.Generator().manual_seed(0))}
    weights["w"][::10] = float("nan")
    for n in (50, 90):
        assert np.array_equal(chosen(select(weights, count=n), weights), n_smallest(weights, n))
    with pytest.raises(SelectionError):
        select(weights, count=95)


@pytest.mark.parametrize("rules", [
    {}, {"threshold": 0.1, "count": 5}, {"count": 5, "density": 0.1}, {"threshold": 0.1, "count": 5, "density": 0.1},
])  # fmt: skip
def test_exactly_one_rule(rules):
    with pytest.raises(SelectionError, match="exactly one of threshold, count and density"):
        select(model_weights(), **rules)


@pytest.mark.parametrize("rule", ["threshold", "count", "density"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), -float("inf")])
def test_meaningless_values(rule, value):
    with pytest.raises(SelectionError, match=f"^{rule} is .*: it takes a (whole )?number above 0"):
        select(model_weights(), **{rule: value})


def test_the_largest_that_is_chosen_is_said_in_single_precision():
    result = select({"w": torch.tensor([0.1, 5.0, -0.05], dtype=torch.float64)}, count=2)
    assert result.theta == float(torch.tensor(0.1)) != 0.1


def test_a_threshold_that_selects_nothing_says_how_small_the_weights_are():
    with pytest.raises(SelectionError, match=r"the smallest is 0\.25.*Raise the threshold, or choose by density"):
        select({"a": torch.tensor([0.5, -0.25]), "b": torch.tensor([[1.0]])}, threshold=0.2)
    nan = float("nan")  # which is neither smaller nor larger than anything
    with pytest.raises(SelectionError, match=r"the smallest is 0\.25"):
        select({"a": torch.tensor([nan, nan]), "b": torch.tensor([0.5, nan, -0.25])}, threshold=0.2)


@pytest.mark.parametrize("rule", [{"threshold": 100.0}, {"count": 10**6}, {"density": 1.0}, {"density": 5.0}])
def test_everything_selected_is_full_fine_tuning(rule):
    with pytest.raises(SelectionError, match=r"full fine-tuning.*Lower"):
        select(model_weights(), **rule)


def test_a_density_that_rounds_to_nothing():
    with pytest.raises(SelectionError, match="selects nothing of .* raise it"):
        select(model_weights(), density=1e-9)


@pytest.mark.parametrize("rule", [{"threshold": 0.1}, {"count": 5}])
def test_no_weights_at_all(rule):
    with pytest.raises(SelectionError, match="the include and exclude patterns leave no Linear or Conv layer"):
        select({}, **rule)


def test_parameters_that_ask_for_gradients_are_chosen_from_like_any_weights():
    plain = {"matrix": torch.randn(6, 5), "vector": torch.randn(7)}
    parameters = {name: torch.nn.Parameter(weight.clone()) for name, weight in plain.items()}
    chosen, expected = (select(weights, count=9).indices for weights in (parameters, plain))
    assert chosen.keys() == expected.keys()
    assert all(torch.equal(chosen[name], index) for name, index in expected.items())
    check_selectable(parameters, threshold=1.0)
    with pytest.raises(SelectionError, match="smallest"):
        check_selectable(parameters, threshold=1e-9)


def test_of_many_equals_no_more_are_looked_at_than_are_chosen(monkeypatch):
    """As of weights in fp8, of which some per cent are 0."""
    candidates, cut = [], search.cut
    monkeypatch.setattr(search, "cut", lambda found, *others: candidates.append(found) or cut(found, *others))
    weights = {f"layers.{number}.weight": torch.ones(50, 40) for number in range(20)}
    for number, weight in enumerate(weights.values()):
        weight.view(-1)[number::2] = 0.0
    found = search.smallest(weights, [(list(weights), 1500)])
    (looked_at,) = candidates
    assert sum(index.numel() for index in looked_at.values()) == 2000  # two weights, each looked at as a whole
    assert {name: len(index) for name, index in found.items() if len(index)} == {
        "layers.0.weight": 1000, "layers.1.weight": 500,
    }  # fmt: skip
    assert torch.equal(found["layers.1.weight"], torch.arange(1, 1000, 2, dtype=torch.int32))


class MadeAnew(Mapping):
    """Weights that are made each time they are asked for, as dequantised ones; counts how often that is."""

    def __init__(self, weights):
        self.weights, self.asked = weights, Counter()

    def __getitem__(self, name):
        self.asked[name] += 1
        return self.weights[name].clone(memory_format=torch.preserve_format)

    def __iter__(self):
        return iter(self.weights)

    def __len__(self):
        return len(self.weights)


@pytest.mark.parametrize("asked_for, times", [
    ({"threshold": 0.125}, 2),  # are they numbers; the positions
    ({"count": 50}, 4),  # are they numbers; a sample; the positions with their magnitudes; the largest chosen
    ({"count": 50, "rule": "largest"}, 3),
    ({"density": 0.2, "per_layer": True}, 3),
    ({"count": 50, "rule": "random"}, 1),
])  # fmt: skip
def test_a_weight_that_has_to_be_made_is_made_no_more_often_than_it_is_read(asked_for, times):
    weights = model_weights()
    made = MadeAnew(weights)
    result, expected = select(made, **asked_for), select(weights, **asked_for)
    assert all(torch.equal(result.indices[name], index) for name, index in expected.indices.items())
    assert max(made.asked.values()) == times
