"""What of two checkpoints beside the diffusion model differs."""

import pytest
import torch

from sara_core.models.comparison import _same_bytes

ONES = torch.ones(4)


@pytest.mark.parametrize("other, same", [
    (torch.ones(4), True), (torch.tensor([1.0, 1.0, 1.0, 2.0]), False), (torch.tensor([1.0, 1.0, 1.0, -0.0]), False),
    (ONES.view(torch.int32), False), (torch.ones(2, 2), False),
])  # fmt: skip
def test_equal_bytes_of_another_dtype_or_shape_are_no_equal_tensor(other, same):
    assert _same_bytes(ONES, other) is same
