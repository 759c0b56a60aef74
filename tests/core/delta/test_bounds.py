"""How large a delta may be, in numbers: what is allowed at a bound, and that one more is refused."""

import pytest
import torch

from sara_core.delta import file_v1
from sara_core.delta.entry import SparseEntry, check_entry, check_shape
from sara_core.errors import DeltaError


@pytest.mark.parametrize("shape", [(2**31 - 1,), (1,) * 8, (46_340, 46_340)], ids=str)
def test_shapes_that_int32_can_number(shape):
    check_shape("a", shape)
    last = 1
    for side in shape:
        last *= side
    check_entry("a", SparseEntry(torch.tensor([last - 1], dtype=torch.int32), torch.ones(1), shape))


@pytest.mark.parametrize("shape, words", [
    ((2**31,), "more than 2.31 - 1 elements"), ((46_341, 46_341), "more than 2.31 - 1 elements"),
    ((1,) * 9, "has 9 dimensions, at most 8 make sense"),
    ((2, 0), "empty or negative side"), ((-1,), "empty or negative side"),
], ids=str)  # fmt: skip
def test_shapes_that_are_none(shape, words):
    with pytest.raises(DeltaError, match=f"The delta's entry 'a' is damaged: .*{words}"):
        check_shape("a", shape)


def test_limits_of_a_file_are_those_of_its_page():
    """docs/format.md"""
    assert (file_v1.MOST_ENTRIES, file_v1.MOST_ELEMENTS, file_v1.VALUE_BYTES) == (16_384, 2**38, 4)
