"""What devices without 64-bit floating point are spared."""

from types import SimpleNamespace

import pytest
import torch

from sara_core.tensors.elements import sum_of_squares, where_float64_is


@pytest.mark.parametrize("device, copied", [("mps", True), ("cpu", False), ("cuda", False)])
def test_only_a_device_without_float64_is_left(device, copied):
    there, here = SimpleNamespace(device=torch.device(device)), torch.zeros(1)
    there.cpu = lambda: here
    assert where_float64_is(there) is (here if copied else there)


def test_squares_are_summed_in_float64():
    assert sum_of_squares(torch.full((1000,), 1e30)) == pytest.approx(1e63)
    assert sum_of_squares(torch.tensor([], dtype=torch.float16)) == 0
