"""Weights that cannot take a change: too small a range for it, or no place of their own for every element."""

import pytest
import torch

from sara_core import SparseDelta, SparseEntry
from sara_core.errors import DeltaError, UnsupportedModelError
from sara_core.tensors.elements import overlaps_itself


def delta(value, shape=(4,), names=("b.weight",)):
    entry = SparseEntry(torch.tensor([1, 2], dtype=torch.int32), torch.tensor([value, 1.0]), shape)
    return SparseDelta(dict.fromkeys(names, entry))


@pytest.mark.parametrize("dtype, base, value, strength", [
    (torch.float16, 60000.0, 6000.0, 1.0), (torch.float16, -65504.0, -16.0, 1.0), (torch.float16, 0.0, 2.0, 32760.0),
    (torch.float16, 0.0, -1e38, 1.0), (torch.bfloat16, 3.3e38, 5e36, 3.0), (torch.float32, 3.4e38, 1e37, 1.0),
])  # fmt: skip
def test_what_would_become_infinite_is_refused_and_nothing_is_changed(dtype, base, value, strength):
    weights = {name: torch.full((4,), base, dtype=dtype) for name in ("a.weight", "b.weight")}
    before = {name: weight.clone() for name, weight in weights.items()}
    change = SparseDelta({**delta(1.0, names=["a.weight"]).entries, **delta(value).entries})
    with pytest.raises(DeltaError, match="makes 1 element of 'b.weight' larger than .* Choose a lower strength"):
        change.apply_(weights, strength)
    assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_another_strength_is_refused_alike_and_the_handle_goes_on():
    weights = {name: torch.zeros(4, dtype=torch.float16) for name in ("a.weight", "b.weight")}
    handle = delta(1000.0, names=weights).apply_(weights)
    with pytest.raises(DeltaError, match="2 elements|1 element"):
        handle.set_strength(66.0)
    assert not any(weight.any() for weight in weights.values())
    handle.set_strength(2.0)
    assert weights["a.weight"].tolist() == weights["b.weight"].tolist() == [0, 2000, 2, 0]
    handle.remove()


def test_what_just_fits_is_applied_and_infinities_of_the_base_stay():
    weight = torch.tensor([0.0, 65000.0, float("inf"), 0.0], dtype=torch.float16)
    delta(504.0).apply_({"b.weight": weight})
    assert weight.tolist() == [0.0, 65504.0, float("inf"), 0.0]


@pytest.mark.parametrize("weight", [
    torch.zeros(1, 4).expand(4, 4), torch.zeros(4, 1).expand(4, 4), torch.zeros(1).expand(4, 4),
    torch.zeros(16).as_strided((4, 4), (2, 1)), torch.zeros(16).unfold(0, 4, 1)[:4],
])  # fmt: skip
def test_a_weight_with_several_elements_at_one_place_is_refused(weight):
    assert overlaps_itself(weight)
    with pytest.raises(UnsupportedModelError, match="'b.weight' has several elements at one place"):
        delta(1.0, (4, 4)).apply_({"b.weight": weight})
    assert not weight.any()


@pytest.mark.parametrize("weight", [
    torch.zeros(4, 4), torch.zeros(4, 4).t(), torch.zeros(8, 8)[::2, 1::2], torch.zeros(1, 4, 1).expand(1, 4, 1),
    torch.zeros(2, 3, 5, 5).to(memory_format=torch.channels_last), torch.zeros(()), torch.zeros(1).expand(1),
    torch.zeros(2, 3, 4).permute(2, 0, 1),
])  # fmt: skip
def test_other_layouts_have_a_place_for_each(weight):
    assert not overlaps_itself(weight)
