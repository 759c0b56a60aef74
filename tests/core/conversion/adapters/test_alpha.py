"""How large the rank of an adapter's factors may be."""

import pytest

from sara_core.conversion.adapters.alpha import MAX_RANK, bounded


@pytest.mark.parametrize("rank", [-1, 0, MAX_RANK + 1])
def test_a_rank_that_no_adapter_has_is_refused(rank):
    with pytest.raises(IndexError):
        bounded(rank)


@pytest.mark.parametrize("rank", [1, MAX_RANK])
def test_the_least_and_the_largest_rank_are_taken(rank):
    assert bounded(rank) == rank
