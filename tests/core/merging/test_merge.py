"""Merging deltas: equal to the dense computation, whatever the supports, weights and order."""

import itertools
import json
import math

import pytest
import torch

from sara_core import DeltaError, SparseDelta, SparseEntry, merge
from sara_core.merging.block_factors import block_presets, parse_blocks
from sara_core.merging.merge import METHODS, MergeSettings, merge_with_report
from sara_core.names.blocks import block_of, natural_order

pytestmark = pytest.mark.bits

SHAPES = {
    "diffusion_model.input_blocks.1.1.attn1.to_q.weight": (40, 30),
    "diffusion_model.middle_block.0.conv.weight": (12, 10, 3, 3),
    "diffusion_model.output_blocks.10.0.weight": (50, 20),
    "diffusion_model.out.2.bias": (50,),
}
WEIGHTS = [0.6, -0.4, 1.7]


def entry(shape, count, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randperm(math.prod(shape), generator=generator)[:count].sort().values.to(torch.int32)
    return SparseEntry(positions, (torch.randn(count, generator=generator) * 0.05).to(dtype), shape)


def delta(seed, density=0.3, shapes=SHAPES, metadata=None):
    entries = {
        name: entry(shape, max(1, int(math.prod(shape) * density)), seed * 100 + place)
        for place, (name, shape) in enumerate(shapes.items())
    }
    return SparseDelta(entries, metadata)


def three():
    """Three deltas with different supports; the last one lacks a weight."""
    return [delta(1), delta(2), delta(3, shapes=dict(list(SHAPES.items())[1:]))]


def same_support(delta, seed):
    """Other changes of the same elements."""
    generator = torch.Generator().manual_seed(seed)
    return SparseDelta({
        name: e._replace(values=torch.randn(len(e.values), generator=generator)) for name, e in delta.entries.items()
    })


def dense(delta, name):
    whole = torch.zeros(math.prod(SHAPES[name]))
    if name in delta.entries:
        whole[delta.entries[name].indices.long()] = delta.entries[name].values.float()
    return whole


def stacked(deltas, weights):
    """Name → fp32 [deltas, elements of the weight]: the deltas as dense tensors times their weights."""
    return {name: torch.stack([dense(d, name) * w for d, w in zip(deltas, weights)]) for name in SHAPES}


def bits(tensor):
    return tensor.contiguous().view(torch.int32)


def assert_same(first, second):
    assert first.entries.keys() == second.entries.keys()
    for name, (indices, values, shape) in first.entries.items():
        other = second.entries[name]
        assert torch.equal(indices, other.indices) and torch.equal(bits(values), bits(other.values))
        assert shape == other.shape


def assert_equals_dense(merged, expected):
    """Bit for bit, and nothing beside it."""
    for name, whole in expected.items():
        assert torch.equal(bits(dense(merged, name) + 0.0), bits(whole + 0.0)), name


def dense_sum(rows):
    total = rows[0].clone()
    for row in rows[1:]:
        total = total + row
    return total


def dense_ties(stacks, keep, sign):
    """TIES as in its paper, over whole task vectors."""
    flat = torch.cat(list(stacks.values()), 1)
    trimmed = torch.zeros_like(flat)
    for number, row in enumerate(flat):
        count = max(1, round(keep * int((row != 0).sum())))
        largest = row.abs().topk(count).indices
        trimmed[number, largest] = row[largest]
    mass = trimmed.double().sum(0)
    votes = trimmed.sign().sum(0)
    elected = torch.where((votes == 0) | (sign == "total"), mass.sign(), votes.double().sign())
    agreeing = (trimmed.sign() == elected) & (trimmed != 0)
    merged = dense_sum(trimmed * agreeing) / agreeing.sum(0).clamp(min=1)
    sizes = [rows.shape[1] for rows in stacks.values()]
    return dict(zip(stacks, merged.split(sizes)))


def test_one_delta_with_weight_one_stays_as_it_is():
    one = delta(1)
    name = next(iter(one.entries))
    one.entries[name].values[0], one.entries[name].values[1] = 0.0, -0.0
    for method in ("sum", "mean"):
        assert_same(merge([one], method=method), one)


@pytest.mark.parametrize("weights", [[1, 1, 1], WEIGHTS, [-2.5, 0.0, 3.0]])
def test_a_sum_equals_the_dense_sum(weights):
    assert_equals_dense(merge(three(), weights), {n: dense_sum(r) for n, r in stacked(three(), weights).items()})


def test_a_sum_equals_adding_and_multiplying_deltas():
    a, b, c = three()
    assert_same(merge([a, b, c], WEIGHTS), a * 0.6 + b * -0.4 + c * 1.7)


def test_a_mean_divides_by_the_number_of_all_deltas():
    expected = {name: dense_sum(rows) / 3 for name, rows in stacked(three(), WEIGHTS).items()}
    assert_equals_dense(merge(three(), WEIGHTS, "mean"), expected)


@pytest.mark.parametrize("method", ["sum", "mean"])
def test_deltas_of_one_support_merge_by_adding_vectors(method):
    one = delta(1)
    other = same_support(one, 5)
    merged = merge([one, other], [0.5, -2], method)
    for name, (indices, values, _) in merged.entries.items():
        assert torch.equal(indices, one.entries[name].indices)
        expected = one.entries[name].values * 0.5 + other.entries[name].values * -2
        assert torch.equal(values, expected / (2 if method == "mean" else 1))


@pytest.mark.parametrize("sign", ["total", "count"])
@pytest.mark.parametrize("keep", [0.2, 0.5, 1.0])
def test_ties_equals_the_dense_reference(keep, sign):
    deltas = [delta(seed, 0.6) for seed in (1, 2, 3)]
    merged = merge(deltas, WEIGHTS, "ties", keep=keep, sign=sign)
    assert_equals_dense(merged, dense_ties(stacked(deltas, WEIGHTS), keep, sign))


def test_the_two_elections_differ():
    two_small, one_large = [SparseDelta({"w": one(0.1)}), SparseDelta({"w": one(0.1)})], SparseDelta({"w": one(-1.0)})
    by_total = merge([*two_small, one_large], method="ties", keep=1, sign="total")
    by_count = merge([*two_small, one_large], method="ties", keep=1, sign="count")
    assert by_total.entries["w"].values.tolist() == [-1.0]
    assert torch.allclose(by_count.entries["w"].values, torch.tensor([0.1]))


def one(value, position=0, shape=(4,)):
    return SparseEntry(torch.tensor([position], dtype=torch.int32), torch.tensor([value]), shape)


def test_equal_votes_are_decided_by_the_total_and_a_draw_leaves_the_weight_alone():
    pair = [SparseDelta({"w": one(0.25)}), SparseDelta({"w": one(-1.0)})]
    assert merge(pair, method="ties", keep=1, sign="count").entries["w"].values.tolist() == [-1.0]
    drawn = [SparseDelta({**delta.entries, "v": one(0.5)}) for delta in pair]
    assert list(merge(drawn, [4, 1], "ties", keep=1).entries) == ["v"]


@pytest.mark.parametrize("weights, method", [([0, 0], "sum"), ([4, 1], "ties")])
def test_a_merge_that_leaves_nothing_is_refused(weights, method):
    with pytest.raises(DeltaError, match="leaves nothing"):
        merge([SparseDelta({"w": one(0.25)}), SparseDelta({"w": one(-1.0)})], weights, method, keep=1)


@pytest.mark.parametrize("settings", [
    {"method": "sum"}, {"method": "mean"}, {"method": "ties", "sign": "total"}, {"method": "ties", "sign": "count"},
], ids=str)  # fmt: skip
def test_the_order_of_the_deltas_only_rounds(settings):
    results = [
        merge([three()[i] for i in order], [WEIGHTS[i] for i in order], **settings)
        for order in itertools.permutations(range(3))
    ]
    for result in results[1:]:
        assert result.entries.keys() == results[0].entries.keys()
        for name, (indices, values, _) in result.entries.items():
            assert torch.equal(indices, results[0].entries[name].indices)
            assert torch.allclose(values, results[0].entries[name].values, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_entries_does_not_matter(method):
    backwards = [SparseDelta(dict(reversed(d.entries.items()))) for d in three()]
    assert_same(merge(three(), WEIGHTS, method), merge(backwards, WEIGHTS, method))


def test_dare_is_decided_by_its_seed_and_draws_for_each_delta():
    first, again = merge(three(), method="dare", seed=1), merge(three(), method="dare", seed=1)
    assert_same(first, again)
    assert_same(merge(three(), method="dare"), merge(three(), method="dare", seed=0))
    other = merge(three(), method="dare", seed=2)
    assert any(not torch.equal(first.entries[n].indices, other.entries[n].indices) for n in first.entries)
    twice = delta(1)
    pair = merge([twice, twice], [1, 10], "dare", keep=0.5)
    name = "diffusion_model.output_blocks.10.0.weight"
    factors = (dense(pair, name) / dense(twice, name))[dense(twice, name) != 0].round().int()
    assert set(factors.tolist()) == {0, 2, 20, 22}


def test_what_dare_draws_for_a_weight_does_not_depend_on_the_others():
    name, whole = "diffusion_model.output_blocks.10.0.weight", delta(1)
    alone = SparseDelta({name: whole.entries[name]})
    first, second = (merge([d], method="dare", seed=7).entries[name] for d in (whole, alone))
    assert torch.equal(first.indices, second.indices)


def test_dare_keeps_its_share_and_the_expectation():
    shape = (400, 500)
    ones = SparseDelta({"w": SparseEntry(torch.arange(200_000, dtype=torch.int32), torch.ones(200_000), shape)})
    thinned = merge([ones], method="dare", keep=0.25, seed=3)
    assert torch.equal(thinned.entries["w"].values.unique(), torch.tensor([4.0]))
    # 200,000 draws at 1/4: a standard deviation is 194 of 50,000.
    assert abs(thinned.nnz - 50_000) < 5 * 194
    assert_same(merge([ones], method="dare", keep=1), ones)


@pytest.mark.parametrize("method", METHODS)
def test_values_of_every_dtype_are_merged_in_float32(method):
    low = SparseDelta({name: entry(SHAPES[name], 20, 1, torch.bfloat16) for name in SHAPES})
    wide = SparseDelta({name: e._replace(values=e.values.float()) for name, e in low.entries.items()})
    assert_same(merge([low, delta(2)], [0.3, 1], method), merge([wide, delta(2)], [0.3, 1], method))


# --- factors of blocks


def test_block_lines_set_factors_and_the_last_that_fits_counts():
    blocks = parse_blocks("* = 0  # nothing but:\n\nattn1, conv = 0.5\nmiddle_block = -2\n")
    merged = merge([delta(1)], [3.0], blocks=blocks)
    expected = {name: dense(delta(1), name) * factor for name, factor in zip(SHAPES, (1.5, -6.0, 0.0, 0.0))}
    assert_equals_dense(merged, expected)
    assert set(merged.entries) == set(list(SHAPES)[:2])


def test_each_delta_can_have_its_own_factor():
    a, b = delta(1), delta(2)
    merged = merge([a, b], blocks=parse_blocks("* = 1, 0\noutput_blocks = 0, 1"))
    for name in SHAPES:
        source = b if "output_blocks" in name else a
        assert torch.equal(dense(merged, name), dense(source, name))


def test_an_asterisk_matches_whole_names_and_a_word_anywhere():
    blocks = parse_blocks("output* = 0\n*.bias = 0")
    with pytest.raises(DeltaError, match=r"'output\* = 0' fits none of the 4 weights"):
        merge([delta(1)], blocks=blocks)
    assert "diffusion_model.out.2.bias" not in merge([delta(1)], blocks=blocks[1:]).entries


@pytest.mark.parametrize("line", ["attn1", "= 1", "attn1 =", "attn1 = much", "attn1 = nan", "attn1 = 1 2"])
def test_lines_that_say_nothing_are_refused(line):
    with pytest.raises(DeltaError, match="cannot be understood.*output_blocks = 0.5"):
        parse_blocks(line)


def test_a_line_with_the_wrong_number_of_factors_is_refused():
    with pytest.raises(DeltaError, match="3 factors for 2 deltas"):
        merge([delta(1), delta(2)], blocks=parse_blocks("attn1 = 1, 2, 3"))


@pytest.mark.parametrize("preset, taken", [
    ("all blocks", [0, 1, 2, 3]), ("attention only", [0]), ("input blocks", [0]), ("middle block", [1]),
    ("output blocks", [2]),
])  # fmt: skip
def test_presets_take_parts_of_the_model(preset, taken):
    merged = merge([delta(1)], blocks=block_presets()[preset])
    assert set(merged.entries) == {list(SHAPES)[place] for place in taken}


def test_a_preset_for_another_family_is_refused():
    for preset in ("SDXL style", "SDXL composition", "cross-attention only"):
        with pytest.raises(DeltaError, match="fits none of the 4 weights"):
            merge([delta(1)], blocks=block_presets()[preset])
    names = [f"diffusion_model.{place}.1.transformer_blocks.0.attn2.to_k.weight"
             for place in ("output_blocks.1", "output_blocks.11", "input_blocks.8")]  # fmt: skip
    whole = SparseDelta({name: entry((4, 4), 3, 0) for name in names})
    assert list(merge([whole], blocks=block_presets()["SDXL style"]).entries) == names[:1]
    assert list(merge([whole], blocks=block_presets()["SDXL composition"]).entries) == names[2:]
    assert merge([whole], blocks=block_presets()["cross-attention only"]).nnz == whole.nnz


def test_blocks_are_named_up_to_their_number():
    assert [block_of(name) for name in SHAPES] == ["input_blocks.1", "middle_block.0", "output_blocks.10", "out.2"]
    assert block_of("model.diffusion_model.img_in.weight") == "img_in"
    assert sorted(["b.10", "b.9", "a.11"], key=natural_order) == ["a.11", "b.9", "b.10"]


# --- what goes together, and what does not


def test_deltas_under_another_prefix_are_merged_under_the_first_ones():
    bare = SparseDelta({name.removeprefix("diffusion_model."): e for name, e in delta(2).entries.items()})
    assert_same(merge([delta(1), bare]), merge([delta(1), delta(2)]))
    assert all(name.startswith("input") or "." in name for name in merge([bare, delta(1)]).entries)
    assert set(merge([bare, delta(1)]).entries) == set(bare.entries)


def test_other_families_and_shapes_are_refused_by_name():
    sd, xl = delta(1, metadata={"sara.family": "SD1.5"}), delta(2, metadata={"sara.family": "SDXL"})
    with pytest.raises(DeltaError, match="'ink' is for SD1.5, but 'oil' is for SDXL"):
        merge([sd, delta(3), xl], names=["ink", "pen", "oil"])
    name = next(iter(SHAPES))
    turned = SparseDelta({name: entry((30, 40), 5, 0)})
    with pytest.raises(DeltaError, match=r"'ink' and 'oil'.*to_q.*\[40, 30\].*\[30, 40\]"):
        merge([sd, turned], names=["ink", "oil"])


@pytest.mark.parametrize("arguments, words", [
    (([], 1), "nothing to merge"),
    (([delta(1)], [1, 2]), "1 deltas but 2 weights"),
    (([delta(1)], [math.nan]), "finite"),
    (([delta(1)], 1, "slerp"), "no merge method 'slerp'"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_what_makes_no_sense_is_refused(arguments, words):
    with pytest.raises(DeltaError, match=words):
        merge(*arguments)


@pytest.mark.parametrize("setting", [{"keep": 0}, {"keep": 1.1}, {"keep": math.nan}, {"sign": "loudest"}], ids=str)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(DeltaError, match="keep must be|share to keep|elected"):
        merge([delta(1)], method="ties", **setting)


def test_metadata_says_what_was_merged_and_keeps_what_all_agree_on():
    common = {"sara.family": "SD1.5", "sara.base": "ab12", "sara.training": "{}", "sara.selection": "{}"}
    a, b = delta(1, metadata={**common, "modelspec.title": "Ink"}), delta(2, metadata=common)
    metadata = merge([a, b], [0.6, -0.4], "ties", names=["ink", "墨"]).metadata
    assert "墨" in metadata["sara.merge"]
    record = json.loads(metadata.pop("sara.merge"))
    assert metadata == {"sara.family": "SD1.5", "sara.base": "ab12"}
    assert record["deltas"] == [
        {"name": "ink", "weight": 0.6, "elements": a.nnz}, {"name": "墨", "weight": -0.4, "elements": b.nnz},
    ]  # fmt: skip
    assert (record["method"], record["keep"], record["sign"]) == ("ties", 0.5, "total")
    of_one_family = {"Ideogram 4": ("Ideogram4", "Ideogram 4"), "Wan 2.1": ("Wan 2.2 A14B", "Wan 2.1 / 2.2 A14B")}
    for kept, said in of_one_family.items():
        deltas = [delta(1, metadata={"sara.family": family}) for family in said]
        assert merge(deltas).metadata["sara.family"] == kept


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_delta_survives_its_file(tmp_path, method):
    merged = merge(three(), WEIGHTS, method)
    merged.save(tmp_path / "merged.safetensors")
    assert_same(SparseDelta.load(tmp_path / "merged.safetensors"), merged)


# --- the report


def test_the_report_counts_overlap_conflicts_and_shares():
    first = SparseDelta({"a.1.weight": SparseEntry(torch.tensor([0, 1, 2], dtype=torch.int32),
                                                   torch.tensor([1.0, 1.0, -1.0]), (10,))})  # fmt: skip
    second = SparseDelta({"a.1.weight": SparseEntry(torch.tensor([1, 2, 3], dtype=torch.int32),
                                                    torch.tensor([2.0, 2.0, 2.0]), (10,)),
                          "a.2.weight": one(4.0)})  # fmt: skip
    merged, report = merge_with_report([first, second], [1.0, 0.5], MergeSettings())
    assert report.overlap(0, 1) == report.overlap(1, 0) == first.overlap(second) == 2 / 5
    assert report.conflict(0, 1) == 1 / 2
    assert report.total.shares == [3 / 8, 5 / 8]
    assert report.blocks["a.1"].shares == [1 / 2, 1 / 2] and report.blocks["a.2"].shares == [0, 1]
    assert (report.total.elements, report.total.shared, report.total.conflicts) == (5, 2, 1)
    assert report.elements == merged.nnz == 5
    text = report.text()
    assert "40.0%" in text and "50.0%" in text and "37.5%" in text and "delta 2 at weight 0.5" in text
    assert [line.split() for line in text.splitlines()[-2:]] == [
        ["a.1", "4", "50.0%", "50.0%", "50.0%"], ["a.2", "1", "0.0%", "0.0%", "100.0%"],
    ]  # fmt: skip


def test_the_report_on_one_delta_compares_it_with_nothing():
    _, report = merge_with_report([SparseDelta({"a.1.weight": one(4.0)})], [1.0], MergeSettings())
    assert report.text().splitlines()[-1] == "  100.0%  delta 1 at weight 1"


def test_the_report_on_ties_shares_out_what_is_left():
    winner, loser = SparseDelta({"w": one(-1.0)}), SparseDelta({"w": one(0.5)})
    settings = MergeSettings("ties", keep=0.5, blocks=parse_blocks("w = 2"))
    _, report = merge_with_report([winner, loser], 1.0, settings)
    assert report.total.shares == [1, 0] and report.conflict(0, 1) == 1
    assert "ties (0.5 kept, sign by total) of 2 deltas" in report.text() and "w = 2" in report.text()


def test_deltas_by_diffusers_names_and_by_comfyuis_are_not_put_side_by_side():
    theirs = SparseDelta({"down_blocks.0.attentions.0.proj_in.weight": entry((4, 4), 3, 0)})
    ours = SparseDelta({"diffusion_model.input_blocks.1.1.proj_in.weight": entry((4, 4), 3, 0)})
    for deltas in ([theirs, ours], [ours, theirs]):
        with pytest.raises(DeltaError, match="as diffusers does, and .* as ComfyUI does.*comfyui_delta"):
            merge(deltas, [1.0, 1.0])
    assert merge([theirs, theirs], [1.0, 1.0]).nnz == merge([ours, ours], [1.0, 1.0]).nnz == 3
