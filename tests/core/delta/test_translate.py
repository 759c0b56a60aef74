"""Entries between diffusers' names and ComfyUI's, where a part of a weight is all that a file has."""

import pytest
import torch

from sara_core.delta import SparseEntry
from sara_core.delta.translate import dense_to_comfy, dense_to_diffusers, to_comfy, to_diffusers
from sara_core.errors import DeltaError
from sara_core.names.parts import Part

PARTS = {"q": Part("qkv", 0, 1, 3), "k": Part("qkv", 1, 1, 3), "v": Part("qkv", 2, 1, 3)}
SWAPPED = {"norm": Part("modulation", swapped=True)}


def entry(positions, values, shape):
    return SparseEntry(torch.tensor(positions, dtype=torch.int32), torch.tensor(values), shape)


def test_the_whole_of_which_a_file_has_a_part_may_not_be_too_large_to_number():
    fits = (2**31 - 1) // 3
    assert to_comfy({"v": entry([5], [1.0], (fits, 1))}, PARTS)["qkv"].indices.tolist() == [2 * fits + 5]
    with pytest.raises(DeltaError, match="'k'.*more than 2.31 - 1 elements"):
        to_comfy({"k": entry([5], [1.0], (fits + 1, 1))}, PARTS)


def test_parts_come_together_in_the_order_of_the_weight_and_apart_again():
    parts = {"v": entry([0, 5], [1.0, 2.0], (2, 3)), "q": entry([1], [3.0], (2, 3))}
    whole, = to_comfy(parts, PARTS).values()
    assert whole.indices.tolist() == [1, 12, 17] and whole.values.tolist() == [3.0, 1.0, 2.0] and whole.shape == (6, 3)
    apart = to_diffusers({"qkv": whole}, PARTS)
    assert apart.keys() == parts.keys()  # nothing changes in "k"
    for name, part in apart.items():
        assert part.indices.tolist() == parts[name].indices.tolist() and part.shape == (2, 3)
        assert part.values.tolist() == parts[name].values.tolist()


def test_halves_change_places_both_ways():
    dense = torch.arange(8.0).view(4, 2)
    there = dense_to_comfy(dense, SWAPPED["norm"])
    assert there.tolist() == [[4, 5], [6, 7], [0, 1], [2, 3]]
    assert torch.equal(dense_to_diffusers(there, SWAPPED["norm"]), dense)
    change = entry([1, 3, 4], [1.0, 2.0, 3.0], (4, 2))
    moved = to_comfy({"norm": change}, SWAPPED)["modulation"]
    assert moved.indices.tolist() == [0, 5, 7] and moved.values.tolist() == [3.0, 1.0, 2.0]
    back = to_diffusers({"modulation": moved}, SWAPPED)["norm"]
    assert back.indices.tolist() == [1, 3, 4] and back.values.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("name, shape", [("q", ()), ("norm", (3, 2))], ids=["no rows", "no two halves"])
def test_a_part_of_an_impossible_shape_is_refused_by_name(name, shape):
    with pytest.raises(DeltaError, match=f"'{name}' cannot have the shape"):
        to_comfy({name: entry([0], [1.0], shape)}, {**PARTS, **SWAPPED})


def test_a_weight_that_cannot_be_divided_is_refused_by_name():
    with pytest.raises(DeltaError, match="'qkv' cannot have the shape"):
        to_diffusers({"qkv": entry([0], [1.0], (7, 2))}, PARTS)
    with pytest.raises(DeltaError, match="parts of 'qkv' do not fit together"):
        to_comfy({"q": entry([0], [1.0], (2, 2)), "k": entry([0], [1.0], (2, 3))}, PARTS)
