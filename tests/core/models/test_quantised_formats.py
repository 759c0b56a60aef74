"""Formats of quantised weights, bit by bit: codes, scales that stay or grow, descriptions, damaged files."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sara_core.delta import SparseDelta, SparseEntry
from sara_core.errors import DeltaError, UnsupportedModelError
from sara_core.models.bake import bake
from sara_core.models.quantised import blocks, rotation
from sara_core.models.quantised.int8 import Int8
from sara_core.models.quantised.microscaled import Mxfp8, Nvfp4

FLOAT8 = torch.float8_e4m3fn


def described(format, **more):
    return torch.tensor(list(json.dumps({"format": format, **more}).encode()), dtype=torch.uint8)


def change(shape, *places_and_values):
    places, values = zip(*places_and_values)
    return SparseDelta({"a.weight": SparseEntry(torch.tensor(places, dtype=torch.int32), torch.tensor(values), shape)})


def baked(folder, tensors, delta, metadata=None, **options):
    base, target = folder / "base.safetensors", folder / "out.safetensors"
    save_file(tensors, base, metadata)
    report = bake(base, target, delta, **options)
    return load_file(target), report


def nvfp4(rows=128, columns=64):
    """All elements 1.0: codes of 1.0 in blocks whose scale is 1, but for the block of each row's end, which is 0.5."""
    scales = torch.ones(rows, columns // 16)
    scales[:, -1] = 0.5
    tiled = torch.zeros(128, 4, dtype=torch.uint8)
    blocks.swizzle_(tiled, scales.to(FLOAT8).view(torch.uint8))
    packed = torch.full((rows, columns // 2), 0x22, dtype=torch.uint8)
    return {
        "a.weight": packed, "a.weight_scale": tiled.view(FLOAT8), "a.weight_scale_2": torch.tensor(1.0),
        "a.comfy_quant": described("nvfp4"),
    }  # fmt: skip


def int8():
    scales = torch.tensor([[0.5], [0.25]])
    weight = torch.tensor([[127, 1, -3, 0], [4, 4, 4, 4]], dtype=torch.int8)
    return {"a.weight": weight, "a.weight_scale": scales, "a.comfy_quant": described("int8_tensorwise")}


@pytest.mark.parametrize("codec, numbers", [(Nvfp4(), 16), (Mxfp8(), 256)])
def test_the_nearest_code_is_written_and_of_two_the_even_one(codec, numbers):
    codes = torch.arange(numbers, dtype=torch.uint8)
    decoded = codec.decode(codes)
    finite = decoded.isfinite()
    codes, decoded = codes[finite], decoded[finite]
    assert torch.equal(codec.encode(decoded), codes)
    ordered = decoded[decoded >= 0].unique()
    middles = (ordered[1:] + ordered[:-1]) / 2
    for wanted in torch.cat([middles, -middles, middles * 1.001, middles * 0.999]).tolist():
        distances = (decoded - wanted).abs()
        best = codes[distances == distances.min()]
        even = best[best % 2 == 0]
        assert codec.encode(torch.tensor([wanted])) in (even if len(best) > 1 else best)


def test_a_scale_stays_as_long_as_it_holds_the_changes(tmp_path):
    result, report = baked(tmp_path, nvfp4(), change((128, 64), (0, 1.0), (17, -3.5)))
    codes = nvfp4()["a.weight"]
    codes[0, 0], codes[0, 8] = 0x42, 0x2C  # 2.0 before 1.0; 1.0 before -2.5, half way between -2 and -3: the even code
    assert torch.equal(result["a.weight"], codes) and report.rescaled == 0
    assert torch.equal(result["a.weight_scale"].view(torch.uint8), nvfp4()["a.weight_scale"].view(torch.uint8))


def test_a_block_that_cannot_hold_a_change_gets_a_scale_of_its_own(tmp_path):
    place = 64 * 77 + 20
    result, report = baked(tmp_path, nvfp4(), change((128, 64), (place, 11.0)))
    before, after = nvfp4(), result
    scales = blocks.unswizzled(after["a.weight_scale"].view(torch.uint8), 128, 4).view(FLOAT8).float()
    assert scales[77].tolist() == [1.0, 2.0, 1.0, 0.5] and report.rescaled == 1
    expected = before["a.weight"].clone()
    expected[77, 8:16] = 0x11  # 1.0 is half of the new scale
    expected[77, 10] = 0x71
    assert torch.equal(after["a.weight"], expected)
    assert "1 blocks of the quantised weights got another scale" in report.text()


def test_a_row_of_int8_that_cannot_hold_a_change_gets_another_scale(tmp_path):
    result, report = baked(tmp_path, int8(), change((2, 4), (0, 63.5), (5, 1.0)))
    assert result["a.weight"].tolist() == [[127, 0, -2, 0], [4, 8, 4, 4]] and report.rescaled == 1
    assert result["a.weight_scale"].tolist() == [[1.0], [0.25]]


def test_one_scale_for_a_whole_weight_stays_and_what_is_too_large_is_cut_off(tmp_path):
    tensors = int8() | {"a.weight_scale": torch.tensor(0.5)}
    result, report = baked(tmp_path, tensors, change((2, 4), (0, 5.0), (1, 1.0)))
    assert result["a.weight"].tolist() == [[127, 3, -3, 0], [4, 4, 4, 4]]
    assert report.lost == 1 and report.share == pytest.approx(1 / 26)
    assert "Of the delta's effect 4% arrived" in report.text()


def test_smoothing_belongs_to_the_weight(tmp_path):
    smoothing = torch.full((64,), 2.0)
    tensors = nvfp4() | {"a.pre_quant_scale": smoothing}
    result, _ = baked(tmp_path, tensors, change((128, 64), (0, 2.0)))
    assert int(result["a.weight"][0, 0]) == 0x42
    result, _ = baked(tmp_path, tensors, change((128, 64), (0, 2.0)), precision="bf16")
    assert list(result) == ["a.weight"] and result["a.weight"][0, :3].tolist() == [4.0, 2.0, 2.0]


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_descriptions_in_the_metadata_count_and_go_with_the_quantisation(tmp_path, prefix):
    tensors = {prefix + name: tensor for name, tensor in int8().items() if name != "a.comfy_quant"}
    metadata = {"_quantization_metadata": json.dumps({"layers": {"a": {"format": "int8_tensorwise"}}}), "title": "x"}
    result, _ = baked(tmp_path, tensors, change((2, 4), (5, 1.0)), metadata)
    assert result[f"{prefix}a.weight"].tolist()[1] == [4, 8, 4, 4]
    result, _ = baked(tmp_path, tensors, change((2, 4), (5, 1.0)), metadata, precision="fp16")
    assert result[f"{prefix}a.weight"].tolist() == [[63.5, 0.5, -1.5, 0.0], [1.0, 2.0, 1.0, 1.0]]
    assert list(result) == [f"{prefix}a.weight"] and result[f"{prefix}a.weight"].dtype == torch.float16
    header = (tmp_path / "out.safetensors").read_bytes()
    assert b"_quantization_metadata" not in header and b"title" in header


def test_a_large_delta_is_added_in_parts_with_the_same_result(tmp_path, monkeypatch):
    changes = change((128, 64), *((place, 0.3 * (place % 37) - 4) for place in range(0, 8192, 5)))
    whole, report = baked(tmp_path, nvfp4(), changes)
    monkeypatch.setattr("sara_core.models.quantised.elements.CHUNK", 100)
    parts, again = baked(tmp_path, nvfp4(), changes)
    assert report == again and report.rescaled > 1
    assert all(
        torch.equal(whole[name].view(-1).view(torch.uint8), parts[name].view(-1).view(torch.uint8)) for name in whole
    )


def without(tensors, name):
    return {own: tensor for own, tensor in tensors.items() if own != name}


NAN8, ZERO = torch.full((128, 4), 0x7F, dtype=torch.uint8).view(FLOAT8), torch.tensor(0.0)
DAMAGED = {
    "no scale": (without(nvfp4(), "a.weight_scale"), "no weight_scale beside it.*Download it again"),
    "no scale of the whole": (without(nvfp4(), "a.weight_scale_2"), "no weight_scale_2"),
    "scales that are no numbers": (nvfp4() | {"a.weight_scale": NAN8}, "a.weight_scale'.*no scales.*Download"),
    "a scale of 0": (nvfp4() | {"a.weight_scale_2": ZERO}, "a.weight_scale_2'.*above 0"),
    "too few scales": (nvfp4() | {"a.weight_scale": NAN8[:64].contiguous()}, "a.weight_scale'.*size"),
    "infinite scales": (int8() | {"a.weight_scale": torch.tensor([[1.0], [torch.inf]])}, "a.weight_scale' has inf"),
    "no description": (nvfp4() | {"a.comfy_quant": torch.ones(9, dtype=torch.uint8)}, "describes no quantised"),
    "a description that is no text": (nvfp4() | {"a.comfy_quant": torch.ones(9)}, "describes no quantised"),
    "smoothing by 0": (nvfp4() | {"a.pre_quant_scale": torch.zeros(64)}, "a.pre_quant_scale'"),
}
UNKNOWN = {
    "a format of the future": (nvfp4() | {"a.comfy_quant": described("nvfp5")}, "'nvfp5'.*fp16, bf16 or fp32"),
    "no format": (nvfp4() | {"a.comfy_quant": described(None)}, "'None'"),
    "a key of the future": (nvfp4() | {"a.comfy_quant": described("nvfp4", zero_point=3)}, "nvfp4 with 'zero_point'"),
    "one in params": (int8() | {"a.comfy_quant": described("int8_tensorwise", params={"bits": 7})}, "with 'bits'"),
    "another dtype": (int8() | {"a.comfy_quant": described("nvfp4")}, "I8 in the format 'nvfp4'"),
    "a tensor of the future": (nvfp4() | {"a.weight_zero": ZERO}, "weight_zero beside it"),
    "scales for columns": (int8() | {"a.weight_scale": torch.ones(1, 4)}, r"int8 with scales of shape \[1, 4\]"),
}  # fmt: skip


@pytest.mark.parametrize("precision", ["as the file", "bf16"])
@pytest.mark.parametrize("kind", [*DAMAGED, *UNKNOWN])
def test_what_is_damaged_or_not_known_is_refused_by_name_and_nothing_written(tmp_path, kind, precision):
    tensors, words = {**DAMAGED, **UNKNOWN}[kind]
    shape = (2, 4) if tensors["a.weight"].dtype == torch.int8 else (128, 64)
    with pytest.raises(UnsupportedModelError if kind in UNKNOWN else DeltaError, match=words):
        baked(tmp_path, tensors, change(shape, (0, 1.0)), precision=precision)
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def test_a_description_of_another_layer_does_not_stop_a_bake(tmp_path):
    tensors = int8() | {"b.weight": torch.ones(3), "c.weight": torch.ones(1, 2, dtype=torch.uint8)}
    tensors["c.comfy_quant"] = described("nvfp5")
    assert baked(tmp_path, tensors, change((2, 4), (5, 1.0)))[0]["a.weight"].tolist()[1] == [4, 8, 4, 4]


@pytest.mark.parametrize("size", [5, 8, "16", 64, None])
def test_groups_that_cannot_be_are_refused(tmp_path, size):
    tensors = int8() | {"a.comfy_quant": described("int8_tensorwise", convrot=True, convrot_groupsize=size)}
    with pytest.raises(DeltaError, match="a.comfy_quant' names a group size"):
        baked(tmp_path, tensors, change((2, 4), (0, 1.0)), precision="bf16")


def test_groups_of_four_are_turned_back(tmp_path):
    tensors = int8() | {"a.comfy_quant": described("int8_tensorwise", params={"convrot": True, "convrot_groupsize": 4})}
    weight = baked(tmp_path, tensors, change((2, 4), (0, 1.0)), precision="bf16")[0]["a.weight"]
    assert weight[1].tolist() == [1.0, 1.0, 1.0, 1.0]
    assert Int8.limit == 127.5


def test_a_precision_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(DeltaError, match="'fp4'.*bf16 or fp16"):
        baked(tmp_path, int8(), change((2, 4), (0, 1.0)), precision="fp4")


def test_a_turned_change_of_half_precision_is_scaled_in_single():
    values = torch.tensor([0.1, -0.3], dtype=torch.bfloat16)
    entry = SparseEntry(torch.tensor([3, 17], dtype=torch.int32), values, (2, 16))
    in_single = SparseEntry(entry.indices, values.float(), entry.shape)
    for ours, theirs in zip(rotation.spread(entry, 0.7, 16), rotation.spread(in_single, 0.7, 16), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
