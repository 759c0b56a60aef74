"""The largest of dense changes: the same ones in whatever pieces they come, and read no more often than needed."""

from dataclasses import dataclass

import pytest
import torch

from sara_core.errors import DeltaError
from sara_core.extraction.largest_changes import LargestChanges, keep_largest

SHAPES = {"a": (40, 30), "b": (7,), "c": (6, 5, 3, 3)}


@dataclass
class Piece:
    name: str
    shape: tuple[int, ...]
    start: int
    change: torch.Tensor


@pytest.fixture
def changes():
    """A quarter of the elements, in a few sizes, so that several are equal where the cut is."""
    generator = torch.Generator().manual_seed(0)
    dense = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {name: (change * 8).round() / 8 * (torch.rand(change.shape, generator=generator) < 0.25)
            for name, change in dense.items()}  # fmt: skip


def in_pieces(changes, size, readings):
    def pieces():
        readings.append(size)
        for name, change in changes.items():
            for number, part in enumerate(change.reshape(-1).split(size)):
                yield Piece(name, tuple(change.shape), number * size, part)

    return pieces


@pytest.mark.parametrize("size", [1, 13, 10_000])
@pytest.mark.parametrize("count", [1, 100, 200])
def test_the_largest_are_kept_in_whatever_pieces_they_come(changes, size, count):
    kept = LargestChanges(in_pieces(changes, size, [])).keep(count)
    everything = torch.cat([change.reshape(-1) for change in changes.values()])
    chosen = everything.abs().sort(descending=True, stable=True).indices[:count].sort().values
    begin = 0
    for name, change in changes.items():
        indices = chosen[(begin <= chosen) & (chosen < begin + change.numel())] - begin
        assert (name in kept.entries) == bool(len(indices))
        if len(indices):
            entry = kept.entries[name]
            assert entry.indices.dtype == torch.int32 and torch.equal(entry.indices, indices.to(torch.int32))
            assert torch.equal(entry.values, change.reshape(-1)[indices]) and entry.shape == change.shape
        begin += change.numel()
    squares = everything.double().square()
    assert kept.squared_share == pytest.approx(float(squares[chosen].sum() / squares.sum()))
    assert kept.lost == pytest.approx(1 - kept.squared_share)


@pytest.mark.parametrize("count, readings", [(100, 3), (10_000, 2)])
def test_a_cut_is_looked_for_only_where_something_is_cut_off(changes, count, readings):
    read = []
    largest = LargestChanges(in_pieces(changes, 50, read))
    kept = largest.keep(count)
    assert len(read) == readings
    assert sum(len(entry.indices) for entry in kept.entries.values()) == min(count, largest.changed)
    assert largest.changed == sum(int(change.count_nonzero()) for change in changes.values())
    assert largest.largest == max(float(change.abs().max()) for change in changes.values())


def test_whoever_watches_sees_what_is_kept_of_every_piece(changes):
    seen = []
    LargestChanges(in_pieces(changes, 50, [])).keep(20, lambda piece, mask: seen.append((piece.name, int(mask.sum()))))
    assert len(seen) == sum(-(-change.numel() // 50) for change in changes.values())
    assert sum(number for _, number in seen) == 20


def test_the_smallest_numbers_that_there_are_count_as_changes():
    change = torch.tensor([1e-44, 0, -1e-45, 0, 0])
    kept = keep_largest(lambda: [("w", change)], None, 5)
    assert kept.entries["w"].indices.tolist() == [0, 2] and kept.lost == 0


def test_changes_that_are_not_sparse_need_a_density():
    changes = [("w", torch.tensor([1.0, 2.0, 3.0, 0.0]))]
    with pytest.raises(DeltaError, match="75% .*Choose a density"):
        keep_largest(lambda: changes, None, 4)
    assert keep_largest(lambda: changes, 0.25, 4).entries["w"].values.tolist() == [3.0]


def test_no_change_at_all_loses_nothing():
    assert keep_largest(lambda: [("w", torch.zeros(4))], 0.5, 4) == ({}, 1.0)
