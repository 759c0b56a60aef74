"""What a merge says of its deltas, number by number and line by line; and how dare draws."""

import json

import pytest
import torch

from sara_core import SparseDelta, SparseEntry, merge
from sara_core.merging.block_factors import parse_blocks
from sara_core.merging.merge import MergeSettings, merge_with_report
from sara_core.merging.report import MergeReport

FIRST, SECOND = "diffusion_model.output_blocks.2.0.weight", "diffusion_model.output_blocks.10.0.weight"


def delta(entries, metadata=None):
    return SparseDelta({
        name: SparseEntry(torch.tensor(places, dtype=torch.int32), torch.tensor(values), (2, 4))
        for name, (places, values) in entries.items()
    }, metadata)  # fmt: skip


# Of each other's three positions they share two at FIRST, one of them with opposite signs and one with a zero.
INK = delta({FIRST: ([0, 1, 2], [1.0, -2.0, 0.0]), SECOND: ([3], [4.0])})
OIL = delta({FIRST: ([1, 2, 5], [3.0, 2.0, 1.0])})


def report_of(*deltas, weights=1.0, method="sum", names=("ink", "oil"), **settings):
    return merge_with_report(deltas, weights, MergeSettings(method, **settings), names[:len(deltas)])[1]


def test_positions_and_signs_are_counted_pair_by_pair():
    report = report_of(INK, OIL)
    assert report.counts.tolist() == [[4, 2], [0, 3]] and report.opposed.tolist() == [[0, 1], [0, 0]]
    assert report.overlap(0, 1) == report.overlap(1, 0) == 2 / 5
    assert report.conflict(0, 1) == report.conflict(1, 0) == 1 / 2
    assert (report.total.elements, report.total.shared, report.total.conflicts) == (5, 1, 1)
    assert report.total.amounts.tolist() == [7.0, 6.0] and report.total.shares == [7 / 13, 6 / 13]


def test_a_negative_weight_turns_the_signs_and_its_amounts_stay_positive():
    report = report_of(INK, OIL, weights=[1, -2])
    assert int(report.opposed[0, 1]) == 0 and report.total.conflicts == 0
    assert report.total.amounts.tolist() == [7.0, 12.0]


def test_changes_in_other_places_are_not_opposed():
    down, up = delta({FIRST: ([0, 6], [-1.0, -1.0])}), delta({FIRST: ([1, 7], [1.0, 1.0])})
    for deltas in ((down, up), (up, down)):
        report = report_of(*deltas)
        assert not report.opposed.any() and int(report.counts[0, 1]) == 0 and report.conflict(0, 1) == 0


def test_blocks_are_counted_by_themselves_and_named_in_natural_order():
    report = report_of(INK, OIL)
    assert report.ordered_blocks() == ["output_blocks.2", "output_blocks.10"]
    two, ten = (report.blocks[name] for name in report.ordered_blocks())
    assert (two.elements, two.shared, two.conflicts, two.amounts.tolist()) == (4, 1, 1, [3.0, 6.0])
    assert (ten.elements, ten.shared, ten.conflicts, ten.shares) == (1, 0, 0, [1.0, 0.0])


def test_the_text_has_a_line_for_each_delta_pair_and_block():
    report = report_of(INK, OIL, weights=[1, 0.5], blocks=parse_blocks("output_blocks.10 = 0.25"))
    assert report.text().splitlines() == [
        "sum of 2 deltas: 5 elements, 31.250% of the weights they are in",
        "  output_blocks.10 = 0.25",
        "",
        "Share of the result (sum of |change|):",
        "   57.1%  ink at weight 1",
        "   42.9%  oil at weight 0.5",
        "",
        "Overlap of positions, and opposite signs among the common ones:",
        "   40.0%   50.0%  ink and oil",
        "",
        "Blocks: elements, opposite signs among the shared ones, share of each delta:",
        "  output_blocks.2             4  100.0%   50.0%   50.0%",
        "  output_blocks.10            1    0.0%  100.0%    0.0%",
    ]


def test_a_delta_alone_has_nobody_to_overlap_with():
    assert report_of(INK).text().splitlines()[2:] == [
        "Share of the result (sum of |change|):", "  100.0%  ink at weight 1"
    ]


def test_where_there_is_nothing_every_share_is_nothing():
    report = MergeReport(["ink", "oil"], [1, 1], "sum")
    assert (report.overlap(0, 1), report.conflict(0, 1), report.total.shares) == (0, 0, [0, 0])
    assert report.text().splitlines()[-1].startswith("Blocks:")


@pytest.mark.parametrize("settings, title", [
    ({}, "sum"), ({"method": "mean", "seed": 3}, "mean"),
    ({"method": "ties", "keep": 0.25, "sign": "count"}, "ties (0.25 kept, sign by count)"),
    ({"method": "dare", "seed": 3}, "dare (0.5 kept, seed 3)"),
], ids=str)  # fmt: skip
def test_a_method_is_called_by_what_else_decides_it(settings, title):
    assert MergeSettings(**settings).title == title


@pytest.mark.parametrize("method, said", [
    ("sum", {}), ("ties", {"keep": 0.75, "sign": "total"}), ("dare", {"keep": 0.75, "seed": 5}),
])  # fmt: skip
def test_the_file_says_what_was_merged_how(method, said):
    both = {"mood": "blue", "modelspec.title": "Ink", "modelspec.date": "today"}
    first, second = (delta({FIRST: ([0, 1, 2], [1.0, 2.0, 3.0])}, {**both, "own": word}) for word in "ab")
    merged = merge([first, second], [1, 0.5], method, names=["ink", "oil"], keep=0.75, seed=5)
    record = json.loads(merged.metadata.pop("sara.merge"))
    assert merged.metadata == {"mood": "blue"}
    assert record == {"method": method, "blocks": [], **said, "deltas": [
        {"name": "ink", "weight": 1.0, "elements": 3}, {"name": "oil", "weight": 0.5, "elements": 3}
    ]}  # fmt: skip


def test_dare_keeps_what_is_drawn_below_the_share(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda count, generator: torch.tensor([0.0, 0.25, 0.5, 0.75])[:count])
    four = delta({FIRST: ([0, 1, 2, 3], [1.0, 2.0, 3.0, 4.0])})
    kept = merge([four], method="dare", keep=0.5).entries[FIRST]
    assert kept.indices.tolist() == [0, 1] and kept.values.tolist() == [2.0, 4.0]


@pytest.mark.parametrize("seed, kept", [(0, [1, 5]), (3, [4, 5, 6, 7])])
def test_a_seed_of_dare_means_the_same_elements_for_ever(seed, kept):
    ones = delta({FIRST: (list(range(8)), [1.0] * 8)})
    assert merge([ones], method="dare", keep=0.5, seed=seed).entries[FIRST].indices.tolist() == kept


@pytest.mark.parametrize("keep, kept", [(0.1, [3]), (0.5, [2, 3]), (1.0, [0, 1, 2, 3])])
def test_ties_keeps_its_share_of_the_largest_and_one_at_least(keep, kept):
    four = delta({FIRST: ([0, 1, 2, 3], [1.0, -2.0, 3.0, -4.0])})
    assert merge([four], method="ties", keep=keep).entries[FIRST].indices.tolist() == kept


def test_by_count_two_small_changes_outvote_a_large_one_and_a_draw_goes_by_the_total():
    small, large = delta({FIRST: ([0, 1], [1.0, 1.0])}), delta({FIRST: ([0, 1], [-9.0, -9.0])})
    half = delta({FIRST: ([1], [2.0])})

    def elected_by(sign):
        return merge([small, large, half], method="ties", keep=1.0, sign=sign).entries[FIRST].values.tolist()

    assert elected_by("total") == [-9.0, -9.0] and elected_by("count") == [-9.0, 1.5]


def test_an_average_counts_what_each_delta_puts_into_it():
    report = report_of(INK, OIL, method="mean")
    assert report.total.amounts.tolist() == [3.5, 3.0]
