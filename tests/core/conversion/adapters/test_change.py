"""The change that a module's tensors stand for, by numbers that can be worked out by hand."""

import pytest
import torch

from sara_core.conversion.adapters.alpha import Alpha
from sara_core.conversion.adapters.change import change
from sara_core.conversion.adapters.readings import TRAINED, Difference

WEIGHT = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64], ids=str)
def test_factors_of_every_precision_are_multiplied_in_float32(dtype):
    """In float16 and bfloat16 1 + 2⁻¹² is no number."""
    factors = {"up": torch.tensor([[1.0, 2.0**-6]]).to(dtype), "down": torch.tensor([[1.0], [2.0**-6]]).to(dtype)}
    made = change("a", factors, (1, 1), Alpha(), lambda: WEIGHT)
    assert made.dtype == torch.float32 and made.tolist() == [[1 + 2.0**-12]]


@pytest.mark.parametrize("part, factors, expected", [
    ("inputs", [1.0, 0.0, -1.0], [[1.0, 0.0, -3.0], [4.0, 0.0, -6.0]]),
    ("outputs", [1.0, -0.5], [[1.0, 2.0, 3.0], [-2.0, -2.5, -3.0]]),
])  # fmt: skip
def test_an_ia3_of_lycoris_scales_the_channels_that_it_is_of(part, factors, expected):
    assert change("a", {part: torch.tensor(factors)}, (2, 3), Alpha(), lambda: WEIGHT).tolist() == expected


def test_nothing_is_told_of_two_readings_of_no_change():
    difference = Difference()
    difference.add(torch.zeros(3))
    difference.add_between(torch.zeros(3), torch.zeros(3), ["DoRA by rows"])
    assert difference.text(TRAINED) is None
