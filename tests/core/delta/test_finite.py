"""Which numbers count as finite, in every dtype and layout that a delta's values come in."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sara_core.delta.entry import all_finite

# Two bytes of every sign and exponent, with the smallest and largest fractions: there infinity and NaN begin.
HALVES = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(-1, 128)[:, [0, 1, -1]].reshape(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_of_two_bytes(dtype):
    numbers = HALVES.view(dtype)
    assert [all_finite(number) for number in numbers] == torch.isfinite(numbers).tolist()
    assert all_finite(numbers[torch.isfinite(numbers)]) and not all_finite(numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_that_require_a_gradient(dtype):
    assert all_finite(torch.ones(3, dtype=dtype, requires_grad=True))


@given(st.lists(st.floats(width=32), max_size=20))
@settings(max_examples=200, deadline=None)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_numbers(dtype, numbers):
    numbers = torch.tensor(numbers, dtype=dtype)
    assert all_finite(numbers) == bool(torch.isfinite(numbers).all())


def test_numbers_whose_sum_is_infinite_are_finite():
    assert all_finite(torch.full((9,), torch.finfo(torch.float32).max))


@pytest.mark.parametrize("spoilt", [False, True])
def test_any_shape_and_layout(spoilt):
    numbers = torch.zeros(6, 8, requires_grad=True)
    with torch.no_grad():
        numbers[5, 7] = torch.nan if spoilt else 1.0
    for view in (numbers, numbers.t(), numbers[1:, ::7], numbers[5, 7]):
        assert all_finite(view) is not spoilt
