"""Extracting a delta from two models: exact where it can be, honest where it cannot."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from sara_core import DeltaError, SparseDelta, SparseEntry, UnsupportedModelError, extract
from sara_core.extraction.extract import extract_with_report
from sara_core.models import comparison
from sara_core.models.bake import bake
from sara_core.models.comparison import exact_change

PREFIX = "model.diffusion_model."
SHAPES = {"a.weight": (40, 30), "b.weight": (12, 10, 3, 3), "c.bias": (50,)}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def base_weights(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(shape, generator=generator) * 0.05).to(dtype) for name, shape in SHAPES.items()}


def tuned_weights(base, scale=0.1, share=1.0, seed=1):
    """Each weight changed by about `scale` of itself, at this share of its elements."""
    generator = torch.Generator().manual_seed(seed)
    tuned = {}
    for name, weight in base.items():
        change = torch.randn(weight.shape, generator=generator) * scale * weight.float()
        change *= torch.rand(weight.shape, generator=generator) < share
        tuned[name] = (weight.float() + change).to(weight.dtype)
    return tuned


def checkpoint(weights, others=None):
    return {**{PREFIX + name: weight for name, weight in weights.items()}, **(others or {})}


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def applied(base, delta):
    weights = {name: weight.clone() for name, weight in base.items()}
    delta.apply_(weights)
    return weights


def changes(base, tuned):
    """Everything that differs: name → dense fp32 tuned − base."""
    return {name: tuned[name].float() - base[name].float() for name in base}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.05, 1.0])
@pytest.mark.parametrize("full", [{}, {"density": 1.0}, {"count": 10**9}], ids=str)
def test_base_plus_everything_is_the_tuned_model(dtype, share, full):
    base = base_weights(dtype)
    tuned = tuned_weights(base, share=share)
    delta, report = extract_with_report(base, tuned, **full)
    assert_same_weights(applied(base, delta), tuned)
    assert report.inexact == 0 and report.squared_share == pytest.approx(1) and report.relative_error < 1e-6
    assert delta.nnz == report.kept == report.changed == sum(int((c != 0).sum()) for c in changes(base, tuned).values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.001, 1.0, 100.0])
def test_what_a_delta_has_made_is_always_found_again(dtype, scale):
    """Whatever its size; at the smallest most weights stay as they were."""
    base = {"a.weight": base_weights(dtype)["a.weight"]}
    values = torch.randn(1200, generator=torch.Generator().manual_seed(3)) * 0.05 * scale
    made = SparseDelta({"a.weight": SparseEntry(torch.arange(1200, dtype=torch.int32), values, (40, 30))})
    tuned = applied(base, made)
    delta, report = extract_with_report(base, tuned)
    assert report.inexact == 0
    assert_same_weights(applied(base, delta), tuned)


def test_elements_that_no_change_reaches_are_counted():
    base, tuned = torch.tensor([1.0, 1.0, 3.0]), torch.tensor([1e-12, 0.5, 3.0000002])
    change, exact = exact_change(base, tuned)
    assert exact.tolist() == [False, True, True]
    _, report = extract_with_report({"w": base}, {"w": tuned})
    assert report.inexact == 1 and "At 1 elements" in report.text()


@pytest.mark.bits
@pytest.mark.parametrize("dtype", DTYPES)
def test_where_the_difference_is_not_exact_no_change_near_it_is(dtype):
    """Against all float32 numbers within eight steps of the difference."""
    generator = torch.Generator().manual_seed(5)
    base = (torch.randn(4000, generator=generator)).to(dtype)
    tuned = (torch.randn(4000, generator=generator) * 10 ** -(torch.rand(4000, generator=generator) * 9)).to(dtype)
    change, exact = exact_change(base, tuned)
    assert torch.equal(exact, (base.float() + change).to(dtype) == tuned)
    missed, difference = ~exact, tuned.float() - base.float()
    for direction in (math.inf, -math.inf):
        near = difference
        for _ in range(8):
            near = torch.nextafter(near, torch.tensor(direction))
            assert not bool(((base.float() + near).to(dtype) == tuned)[missed].any())
    assert dtype == torch.float16 or bool(missed.any())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", [{"count": 1}, {"count": 700}, {"density": 0.2}], ids=str)
def test_the_largest_changes_are_kept(dtype, rule):
    base = base_weights(dtype)
    tuned = tuned_weights(base)
    delta, report = extract_with_report(base, tuned, **rule)
    dense = torch.cat([change.view(-1) for _, change in sorted(changes(base, tuned).items())])
    wanted = rule.get("count") or round(rule["density"] * len(dense))
    order = dense.abs().sort(descending=True, stable=True).indices
    expected = torch.zeros_like(dense)
    expected[order[:wanted]] = dense[order[:wanted]]
    found = torch.zeros_like(dense)
    start = 0
    for name, weight in sorted(base.items()):
        if name in delta.entries:
            found[start + delta.entries[name].indices.long()] = delta.entries[name].values
        start += weight.numel()
    assert delta.nnz == report.kept == wanted
    assert torch.equal(found != 0, expected != 0) and torch.allclose(found, expected, rtol=1e-6, atol=0)
    squares = dense.double().square()
    assert report.squared_share == pytest.approx(float(squares[order[:wanted]].sum() / squares.sum()))
    assert report.largest == float(dense.abs().max())
    assert report.largest_left_out == float(dense.abs()[order[wanted:]].max())


@pytest.mark.bits
def test_a_weight_larger_than_a_chunk_is_numbered_right(monkeypatch):
    base = base_weights()
    tuned = tuned_weights(base)
    whole = {rule: extract(base, tuned, count=rule) for rule in (300, 1500)}
    monkeypatch.setattr(comparison, "CHUNK", 64)
    for rule, delta in whole.items():
        chunked = extract(base, tuned, count=rule)
        for name, (indices, values, _) in delta.entries.items():
            assert torch.equal(chunked.entries[name].indices, indices)
            assert torch.equal(chunked.entries[name].values, values)


def test_exactly_a_support_is_extracted():
    base = base_weights()
    tuned = tuned_weights(base, share=0.3)
    support = extract(base, tuned_weights(base, share=0.2, seed=9), count=400)
    support = SparseDelta(support.entries, {"sara.family": "SD1.5", "sara.base": "ab", "sara.training": "{}"})
    delta, report = extract_with_report(base, tuned, support=support)
    assert delta.entries.keys() == support.entries.keys() and report.kept == support.nnz
    for name, (indices, values, _) in delta.entries.items():
        assert torch.equal(indices, support.entries[name].indices)
        assert torch.equal(values, (tuned[name] - base[name]).view(-1)[indices.long()])
    assert 0 < report.squared_share < 1
    assert delta.metadata.keys() == {"sara.family", "sara.base", "sara.extraction"}


def test_weights_in_other_memory_layouts_are_numbered_in_logical_order():
    base, tuned = base_weights(), tuned_weights(base_weights())
    turned = {**tuned, "b.weight": tuned["b.weight"].to(memory_format=torch.channels_last)}
    plain, other = extract(base, tuned, count=500), extract(base, turned, count=500)
    assert all(torch.equal(plain.entries[n].indices, other.entries[n].indices) for n in plain.entries)


# --- files


@pytest.fixture
def files(tmp_path):
    """Paths of two saved checkpoints, which differ in the text encoder as well."""
    text, image = torch.ones(4), torch.zeros(3)
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    weights = base_weights(torch.float16)
    save_file(checkpoint(weights, {"cond_stage_model.x": text, "first_stage_model.y": image}), base)
    save_file(
        checkpoint(tuned_weights(weights), {"cond_stage_model.x": text * 2, "first_stage_model.y": image}), tuned
    )
    return base, tuned


@pytest.mark.bits
def test_a_baked_extract_is_the_tuned_file(tmp_path, files):
    base, tuned = files
    delta, report = extract_with_report(base, tuned)
    assert all(name.startswith("diffusion_model.") for name in delta.entries)
    bake(base, tmp_path / "again.safetensors", delta)
    again, expected, before = (load_file(p) for p in (tmp_path / "again.safetensors", tuned, base))
    for name, tensor in again.items():
        assert torch.equal(tensor, expected[name] if name.startswith(PREFIX) else before[name])
    assert report.other_parts == {"cond_stage_model": (1, 1), "first_stage_model": (0, 1)}
    assert "1 of the 1 tensors of cond_stage_model" in report.text() and "first_stage" not in report.text()
    record = json.loads(delta.metadata["sara.extraction"])
    assert (record["base"], record["tuned"]) == ("base.safetensors", "tuned.safetensors")


@pytest.mark.parametrize("other", [torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, 2)])
def test_another_part_of_the_same_bytes_but_another_shape_or_dtype_differs(other):
    weights = base_weights()
    _, report = extract_with_report(
        checkpoint(weights, {"vae.x": torch.zeros(2, 3), "vae.y": torch.ones(2)}),
        checkpoint(tuned_weights(weights), {"vae.x": other, "vae.y": torch.ones(2)}),
    )
    assert report.other_parts == {"vae": (1, 2)}


def test_a_checkpoint_and_a_file_of_the_diffusion_model_alone_go_together(tmp_path, files):
    base, tuned = files
    alone = tmp_path / "unet.safetensors"
    save_file({n.removeprefix(PREFIX): t for n, t in load_file(tuned).items() if n.startswith(PREFIX)}, alone)
    one, other = extract(base, tuned), extract(base, alone)
    assert one.entries.keys() == other.entries.keys()
    assert all(torch.equal(one.entries[n].values, other.entries[n].values) for n in one.entries)
    assert all(name.startswith("diffusion_model.") for name in extract(alone, base, count=5).entries)


def test_progress_reaches_the_end_and_may_stop_the_extraction(files):
    for rule in ({}, {"count": 10}, {"count": 10**9}, {"density": 0.5}):
        seen = []
        extract_with_report(*files, **rule, on_progress=lambda done, total: seen.append((done, total)))
        assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]

    class Stop(BaseException):
        pass

    def stop(done, total):
        raise Stop

    with pytest.raises(Stop):
        extract_with_report(*files, on_progress=stop)


def test_a_tuned_model_of_another_dtype_is_reached_as_the_base_can_hold_it():
    base = base_weights(torch.float16)
    tuned = {name: weight.float() * 1.01 for name, weight in base.items()}
    assert_same_weights(applied(base, extract(base, tuned)), {name: w.half() for name, w in tuned.items()})
    wide = {name: weight.float() for name, weight in base.items()}
    half = tuned_weights(base)
    assert_same_weights(applied(wide, extract(wide, half)), {name: weight.float() for name, weight in half.items()})


# --- what does not go together


def test_models_that_do_not_go_together_are_refused(tmp_path, files):
    base = base_weights()
    with pytest.raises(DeltaError, match="no weight of a diffusion model in common"):
        extract(base, {"z.weight": torch.ones(3)})
    with pytest.raises(DeltaError, match="the tuned model.*lacks 1 weights.*c.bias"):
        extract(base, {name: w for name, w in base.items() if name != "c.bias"})
    with pytest.raises(DeltaError, match=r"'a.weight' is \[40, 30\] in 'the base model' and \[30, 40\]"):
        extract(base, {**base, "a.weight": base["a.weight"].t().contiguous()})
    with pytest.raises(DeltaError, match="same diffusion model"):
        extract(base, dict(base))
    with pytest.raises(DeltaError, match="does not exist"):
        extract(tmp_path / "none.safetensors", files[1])
    (tmp_path / "old.ckpt").write_bytes(b"x")
    with pytest.raises(DeltaError, match="old.ckpt.*not a .safetensors"):
        extract(tmp_path / "old.ckpt", files[1])
    with pytest.raises(DeltaError, match="None of the delta's 1 weights"):
        extract(base, tuned_weights(base), support=SparseDelta({"q": SparseEntry(*one_element(), (4,))}))


def one_element():
    return torch.tensor([0], dtype=torch.int32), torch.ones(1)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused_by_name(broken):
    base = base_weights()
    tuned = {name: weight.clone() for name, weight in base.items()}
    tuned["b.weight"].view(-1)[7] = broken
    with pytest.raises(DeltaError, match="b.weight.*NaN or infinite"):
        extract(base, tuned)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8])
def test_quantised_weights_are_refused_by_name(dtype):
    base, tuned = ({"a.weight": torch.tensor([value, 2.0]).to(dtype)} for value in (1.0, 3.0))
    with pytest.raises(UnsupportedModelError, match="a.weight"):
        extract(base, tuned)


@pytest.mark.parametrize("rule", [
    {"count": 0}, {"density": 0.0}, {"density": 1.5}, {"count": 5, "density": 0.5},
], ids=str)  # fmt: skip
def test_rules_that_make_no_sense_are_refused(rule):
    with pytest.raises(DeltaError, match="count|density"):
        extract(base_weights(), tuned_weights(base_weights()), **rule)
