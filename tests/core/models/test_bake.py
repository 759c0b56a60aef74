"""Baking a delta into a checkpoint file: exact, streamed, and nothing but the named weights touched."""

import json
import math
import os
import tracemalloc

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sara_core.delta import SparseDelta, SparseEntry
from sara_core.errors import DeltaError, UnsupportedModelError
from sara_core.files.container import METADATA, read_header, write_header
from sara_core.models.bake import bake
from sara_core.models.quantised import elements

PREFIX = "model.diffusion_model."


def entry(shape, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randperm(math.prod(shape), generator=generator)[:count].sort().values.to(torch.int32)
    return SparseEntry(positions, torch.randn(count, generator=generator) * 0.05, tuple(shape))


def checkpoint_tensors():
    generator = torch.Generator().manual_seed(7)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        f"{PREFIX}a.weight": random(30, 40),
        f"{PREFIX}b.weight": random(20, 10, 3, 3).half(),
        f"{PREFIX}c.weight": random(50, 20).bfloat16(),
        f"{PREFIX}c.bias": random(50).bfloat16(),
        "first_stage_model.x.weight": random(8, 8),
        "cond_stage_model.position_ids": torch.arange(77).view(1, 77),
        "quantised.weight": random(16, 16).to(torch.float8_e4m3fn),
        "flag": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(0.18215, dtype=torch.float64),
    }


def delta():
    return SparseDelta(
        {
            "diffusion_model.a.weight": entry((30, 40), 100, 1),
            "diffusion_model.b.weight": entry((20, 10, 3, 3), 90, 2),
            "diffusion_model.c.weight": entry((50, 20), 50, 3),
            "diffusion_model.c.bias": entry((50,), 5, 4),
        },
        {"sara.family": "SD1.5", "modelspec.title": "A style"},
    )


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.safetensors"
    save_file(checkpoint_tensors(), path, metadata={"format": "pt", "prompt": '{"1": "✓"}'})
    return path


def raw_tensors(path):
    """Name → (dtype, shape, bytes) as they lie in the file."""
    with open(path, "rb") as file:
        header, begin = read_header(file)
        data = file.read()
    header.pop(METADATA, None)
    return {name: (one["dtype"], one["shape"], data[slice(*one["data_offsets"])]) for name, one in header.items()}


@pytest.mark.bits
@pytest.mark.parametrize("strength", [1.0, -0.7, 0.0])
def test_named_weights_are_exact_and_all_others_keep_their_bytes(tmp_path, base, strength):
    target, changes = tmp_path / "out.safetensors", delta()
    bake(base, target, changes, strength)
    before, after, weights = raw_tensors(base), raw_tensors(target), load_file(target)
    assert list(after) == list(before)
    for name, tensor in checkpoint_tensors().items():
        key = name.removeprefix("model.")
        if key not in changes.entries:
            assert after[name] == before[name]
            continue
        indices, values, _ = changes.entries[key]
        expected = tensor.view(-1).clone()
        expected[indices.long()] = (expected[indices.long()].float() + values * strength).to(tensor.dtype)
        assert torch.equal(weights[name].view(-1).view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.bits
def test_baking_equals_applying(tmp_path, base):
    target, weights = tmp_path / "out.safetensors", load_file(base)
    bake(base, target, delta(), 0.6)
    delta().apply_(weights, 0.6)
    baked = load_file(target)
    assert all(torch.equal(weights[name].view(-1).view(torch.uint8), baked[name].view(-1).view(torch.uint8))
               for name in weights)  # fmt: skip


def test_the_base_is_not_touched(tmp_path, base):
    before = base.read_bytes()
    bake(base, tmp_path / "out.safetensors", delta())
    assert base.read_bytes() == before


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model."])
def test_files_with_another_prefix(tmp_path, prefix):
    base, target = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    save_file({f"{prefix}a.weight": torch.zeros(30, 40)}, base)
    changes = SparseDelta({"diffusion_model.a.weight": delta().entries["diffusion_model.a.weight"]})
    bake(base, target, changes)
    assert int((load_file(target)[f"{prefix}a.weight"] != 0).sum()) == 100


def test_metadata_is_kept_and_every_bake_recorded(tmp_path, base):
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    bake(base, once, delta(), 0.5)
    bake(once, twice, delta(), -2)
    with safe_open(twice, framework="pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata.pop("sara.baked"))
    assert metadata == {"format": "pt", "prompt": '{"1": "✓"}'}
    assert [bake["strength"] for bake in record] == [0.5, -2]
    assert record[0] == {"strength": 0.5, "changed": delta().nnz, "delta": delta().metadata}


@pytest.mark.parametrize("junk", ["no json", '{"not": "a list"}', "[" * 100_000])
def test_a_record_that_is_not_ours_does_not_stop_the_bake(tmp_path, junk):
    base, target = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    save_file({"a.weight": torch.zeros(4)}, base, metadata={"sara.baked": junk})
    bake(base, target, SparseDelta({"a.weight": entry((4,), 1)}))
    with safe_open(target, framework="pt") as file:
        assert len(json.loads(file.metadata()["sara.baked"])) == 1


def refused(base, changes, words, error=DeltaError, strength=1.0):
    target = base.with_name("out.safetensors")
    with pytest.raises(error, match=words):
        bake(base, target, changes, strength)
    assert sorted(path.name for path in base.parent.iterdir() if path.is_file()) == [base.name]


def test_what_does_not_fit_is_refused_and_nothing_left_behind(base):
    entries = delta().entries
    refused(base, SparseDelta({"diffusion_model.z.weight": entry((4,), 1), **entries}), "1 of the delta's 5.*z.weight")
    refused(base, SparseDelta({"other.z.weight": entry((4,), 1)}), "None of the delta's 1.*base.safetensors")
    refused(base, SparseDelta({"diffusion_model.a.weight": entry((40, 30), 1)}), r"\[30, 40\].*\[40, 30\]")
    refused(base, SparseDelta({"flag": entry((3,), 1)}), "flag.*BOOL", UnsupportedModelError)
    refused(base, delta(), "finite", strength=math.nan)


def test_damaged_missing_or_pickled_checkpoints_are_refused(tmp_path, base):
    target = tmp_path / "out.safetensors"
    with pytest.raises(DeltaError, match="does not exist"):
        bake(tmp_path / "missing.safetensors", target, delta())
    with pytest.raises(DeltaError, match="not a .safetensors file"):
        bake(tmp_path / "old.ckpt", target, delta())
    whole = base.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        base.write_bytes(whole[:length])
        with pytest.raises(DeltaError, match="base.safetensors.*complete"):
            bake(base, target, delta())
    assert not target.exists()


def test_a_header_in_another_order_than_the_data_changes_no_byte(tmp_path, base):
    with open(base, "rb") as file:
        header, _ = read_header(file)
        data = file.read()
    with open(tmp_path / "other.safetensors", "wb") as file:
        write_header(file, dict(reversed(header.items())))
        file.write(data)
    for name in ("base", "other"):
        bake(tmp_path / f"{name}.safetensors", tmp_path / f"{name} baked.safetensors", delta())
    assert raw_tensors(tmp_path / "other baked.safetensors") == raw_tensors(tmp_path / "base baked.safetensors")


def test_a_checkpoint_is_not_baked_into_itself(base):
    before = base.read_bytes()
    with pytest.raises(DeltaError, match="into itself"):
        bake(base, base, delta())
    assert base.read_bytes() == before


def test_progress_ends_at_the_whole_and_may_stop_the_bake(tmp_path, base):
    target, seen = tmp_path / "out.safetensors", []
    bake(base, target, delta(), on_progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] and len(seen) == len(checkpoint_tensors())
    target.unlink()

    class Stop(BaseException):
        pass

    def stop(done, total):
        raise Stop

    with pytest.raises(Stop):
        bake(base, target, delta(), on_progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == [base.name]


def test_memory_stays_within_twice_the_largest_tensor(tmp_path):
    base, target, largest = tmp_path / "base.safetensors", tmp_path / "out.safetensors", 4 * 2**22
    save_file({f"layer{place}.weight": torch.zeros(2048, 2048) for place in range(6)}, base)
    changes = SparseDelta({f"layer{place}.weight": entry((2048, 2048), 4000, place) for place in range(6)})
    tracemalloc.start()  # bytes read and written; torch's own tensors are views of them
    try:
        bake(base, target, changes)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert largest < peak < 2 * largest + 2**20


@pytest.mark.bits
def test_a_large_delta_is_added_in_parts_with_the_same_result(tmp_path, base, monkeypatch):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    report = bake(base, whole, delta(), 0.6)
    monkeypatch.setattr(elements, "CHUNK", 7)
    assert bake(base, parts, delta(), 0.6) == report
    assert parts.read_bytes() == whole.read_bytes()


def test_a_checkpoint_that_shrinks_meanwhile_is_an_error_in_words(tmp_path):
    base = tmp_path / "base.safetensors"
    save_file({f"layer{place}.weight": torch.zeros(512, 512) for place in range(3)}, base)
    changes = SparseDelta({f"layer{place}.weight": entry((512, 512), 9, place) for place in range(3)})
    with pytest.raises(DeltaError, match="became shorter"):
        bake(base, tmp_path / "out.safetensors", changes, on_progress=lambda done, total: os.truncate(base, 4096))
    assert [path.name for path in tmp_path.iterdir()] == [base.name]


def test_a_change_that_the_checkpoints_precision_cannot_hold_is_refused(base):
    large = SparseEntry(torch.tensor([3], dtype=torch.int32), torch.tensor([7e4]), (20, 10, 3, 3))
    refused(base, SparseDelta({"diffusion_model.b.weight": large}), "b.weight' larger than float16.*lower strength")


def test_what_other_precisions_lose_is_counted_too(tmp_path, base):
    report = bake(base, tmp_path / "out.safetensors", delta())
    weights = checkpoint_tensors()
    lost = sum(
        int((weights[f"model.{name}"].view(-1)[i.long()] == new.view(-1)[i.long()]).sum())
        for name, (i, v, _) in delta().entries.items()
        for new in [load_file(tmp_path / "out.safetensors")[f"model.{name}"]]
    )
    assert report.lost == lost and bool(report.text()) == bool(lost)
    assert bake(base, tmp_path / "none.safetensors", delta(), 0.0).lost == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_node_bakes_what_the_stock_loader_loads(comfy, dtype):
    """The baked file's weights are those of a MODEL with the delta applied at the same strength."""
    from tests.support.toy_models import (
        assert_same_bits, delta_entries, expected_weights, loaded_weights, sd15_checkpoint, unload,
    )  # fmt: skip

    classes = comfy.pack_module("sara_core.delta")
    checkpoint = sd15_checkpoint(dtype=dtype)
    path = comfy.base / "models" / "checkpoints" / f"toy_{dtype}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(checkpoint, path)
    weights = {name.removeprefix("model."): weight for name, weight in checkpoint.items()}
    chosen = {name: weight for name, weight in weights.items() if weight.dim() > 1}
    changes = classes.SparseDelta({n: classes.SparseEntry(*e) for n, e in delta_entries(chosen).items()})

    prefix = f"checkpoints/baked_{path.stem}"
    result = comfy.execute("SaRABake", ckpt_name=path.name, delta=changes, strength=0.7, filename_prefix=prefix)
    assert result.outputs == (f"{prefix}_00001_.safetensors",)
    assert list(result.ui["text"]) == list(result.outputs)
    baked = {n.removeprefix("model."): w for n, w in load_file(comfy.base / "output" / result.outputs[0]).items()}
    assert_same_bits(baked, expected_weights(weights, changes, 0.7))

    name = os.path.basename(result.outputs[0])
    assert name in comfy.folder_paths.get_filename_list("checkpoints")
    if dtype != torch.float32:
        return  # on the CPU the host widens the weights to float32 as it loads them: nothing is rounded there
    from_baked = comfy.execute("UNETLoader", unet_name=_linked(comfy, name), weight_dtype="default").outputs[0]
    from_base = comfy.execute("UNETLoader", unet_name=_linked(comfy, path.name), weight_dtype="default").outputs[0]
    applied = comfy.execute("SaRAApply", model=from_base, delta=changes, strength=0.7).outputs[0]
    assert_same_bits(loaded_weights(from_baked), loaded_weights(applied))
    unload()


def _linked(comfy, name):
    """The checkpoint's name for Load Diffusion Model, which needs no text encoder in the file."""
    source = comfy.folder_paths.get_full_path("checkpoints", name)
    folder = comfy.base / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(open(source, "rb").read())
    return name
