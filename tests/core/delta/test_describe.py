"""What a delta says of itself, number by number."""

import pytest
import torch

from sara_core.delta import SparseDelta, SparseEntry
from sara_core.delta.delta import _overlapping
from sara_core.delta.describe import BlockDensity, density_by_block, describe, file_size


def entry(values, size):
    return SparseEntry(torch.arange(len(values), dtype=torch.int32), torch.tensor(values), (size,))


DELTA = SparseDelta({
    "diffusion_model.blocks.10.a.weight": entry([3.0, 4.0], 10),
    "diffusion_model.blocks.2.a.weight": entry([1.0], 4),
    "diffusion_model.blocks.2.b.weight": entry([], 6),
})  # fmt: skip


def test_blocks_in_natural_order_with_all_their_elements():
    blocks = density_by_block(DELTA)
    assert list(blocks) == ["blocks.2", "blocks.10"]
    assert (blocks["blocks.2"].count, blocks["blocks.2"].of, blocks["blocks.2"].density) == (1, 10, 0.1)
    assert (blocks["blocks.10"].count, blocks["blocks.10"].of) == (2, 10)
    assert blocks["blocks.10"].squares == 25 and blocks["blocks.10"].strength == pytest.approx(12.5**0.5)


def test_the_text_has_a_line_for_every_block():
    lines = [line.split() for line in describe(DELTA).text().splitlines()]
    assert ["blocks.2", "1", "10.000%", "±1.00e+00"] in lines and ["blocks.10", "2", "20.000%", "±3.54e+00"] in lines
    assert "3 changes in 3 weights, 15.000% of their elements" in describe(DELTA).text()


@pytest.mark.parametrize("density, bits", [(0.5, 2.0), (0.25, 3.2451125)])
def test_positions_that_are_packed_take_their_entropy(density, bits):
    """H(p) / p bits for each chosen element, and two in a hundred more; the values as they are."""
    assert file_size(1000, density, value_bytes=2) == round(1000 * (2 + 1.02 * bits / 8))
    assert file_size(1000, density, weights=3) - file_size(1000, density) == 1500
    assert file_size(1000, 1.0) == 4000 and file_size(1000, 1.0, weights=3) == 5500


@pytest.mark.parametrize("density, stored", [(0.0118, False), (0.012, True), (0.125, True), (0.126, False)])
def test_positions_that_are_stored_take_a_byte_and_their_escapes(density, stored):
    a_position = file_size(10**6, density, value_bytes=0) / 10**6
    assert (a_position == pytest.approx(1 / (1 - (1 - density) ** 255), abs=1e-5)) == stored


def test_only_weights_that_share_memory_overlap():
    whole = torch.zeros(12)
    assert not _overlapping([whole[8:], whole[:4], whole[4:8]])
    assert _overlapping([whole[8:], whole[:5], whole[4:8]])
    assert _overlapping([whole, whole[4:5]])


def test_what_has_no_changes_has_no_strength_and_no_density():
    empty = SparseDelta({"diffusion_model.blocks.0.a.weight": entry([], 6)})
    block = density_by_block(empty)["blocks.0"]
    assert (block.count, block.density, block.strength, empty.density) == (0, 0.0, 0.0, 0.0)
    assert BlockDensity().density == SparseDelta({}).density == SparseDelta({}).overlap(empty) == 0.0
    assert "blocks.0            0    0.000%  ±0.00e+00" in describe(empty).text()


def test_a_delta_in_several_precisions_and_words_says_all_of_it():
    one = entry([1.0], 4)
    entries = {"a.weight": one, "b.weight": one._replace(values=one.values.bfloat16())}
    training = '{"steps": 5, "rate": 0.00012345678, "none": null}'
    facts = describe(SparseDelta(entries, {"modelspec.title": "Ink", "sara.training": training, "mood": "blue"}))
    assert facts.value_dtype == "bfloat16, float32"
    assert facts.settings == {"title": "Ink", "training": "steps 5, rate 0.000123457", "mood": "blue"}
    assert [line.split() for line in facts.text().splitlines()[1:4]] == [
        ["title", "Ink"], ["training", "steps", "5,", "rate", "0.000123457"], ["mood", "blue"]
    ]


@pytest.mark.parametrize("more", [0, 1, 3])
def test_of_more_blocks_than_anyone_reads_the_others_are_counted(more):
    many = 500 + more
    delta = SparseDelta({f"diffusion_model.blocks.{place}.weight": entry([1.0], 4) for place in range(many)})
    lines = describe(delta).text().splitlines()
    assert len([line for line in lines if "±" in line]) == 500
    assert lines[-1] == f"and {more} more" if more else "±" in lines[-1]
