"""Baking into quantised checkpoints: exact where it can be, refused by name where it cannot, before a file is there."""

import math

import pytest
import torch
from safetensors.torch import save_file

from sara_core.delta import SparseDelta, SparseEntry
from sara_core.errors import UnsupportedModelError
from sara_core.models.bake import bake
from sara_core.models.quantised import elements
from sara_core.models.quantised.loss import Loss
from tests.core.models.test_bake import delta, entry, raw_tensors, refused

pytestmark = pytest.mark.bits

FLOAT8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
SHAPE = (40, 30)


def numbers_of(dtype):
    """Every finite number of a float8 dtype, by its byte."""
    numbers = {code: float(torch.tensor([code], dtype=torch.uint8).view(dtype).float()) for code in range(256)}
    return {code: number for code, number in numbers.items() if math.isfinite(number)}


def nearest(number, numbers):
    """The byte of the nearest number, of two equally near ones the even byte; by looking at all of them."""
    return min(numbers, key=lambda code: (abs(numbers[code] - number), code % 2, (code >= 128) != (number < 0)))


def float8_weight(dtype, scale=1.0):
    generator = torch.Generator().manual_seed(11)
    return (torch.randn(SHAPE, generator=generator) * 0.05 / scale).to(dtype)


def baked_bytes(folder, tensors, changes, strength=1.0):
    base, target = folder / "base.safetensors", folder / "out.safetensors"
    save_file(tensors, base)
    report = bake(base, target, changes, strength)
    before, after = raw_tensors(base), raw_tensors(target)
    assert list(after) == list(before)
    untouched = before.keys() - {"a.weight"}
    assert all(after[name] == before[name] for name in untouched)
    return before["a.weight"][2], after["a.weight"][2], report


@pytest.mark.parametrize("dtype", FLOAT8.values(), ids=FLOAT8)
@pytest.mark.parametrize(
    "beside, scale",
    [({}, 1.0),
     ({"a.scale_weight": torch.tensor(0.0037), "scaled_fp8": torch.zeros(2)}, 0.0037),
     ({"a.weight_scale": torch.tensor([0.5]).half(), "a.input_scale": torch.tensor(2.0), "a.bias": torch.ones(40),
       "a.comfy_quant": torch.frombuffer(bytearray(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)}, 0.5)],
    ids=["plain", "scale_weight", "comfy_quant"],
)  # fmt: skip
def test_float8_is_added_to_in_float32_and_rounded_once_to_nearest_even(tmp_path, dtype, beside, scale):
    weight, numbers, strength = float8_weight(dtype, scale), numbers_of(dtype), 0.8
    changes = SparseDelta({"diffusion_model.a.weight": entry(SHAPE, 300)})
    before, after, report = baked_bytes(tmp_path, {"a.weight": weight, **beside}, changes, strength)
    indices, values, _ = changes.entries["diffusion_model.a.weight"]
    scale = torch.tensor(scale, dtype=next((t.dtype for n, t in beside.items() if "scale" in n), None)).float()
    wanted = (weight.view(-1).float()[indices.long()] * scale + values * strength) / scale
    expected, lost = bytearray(before), 0
    for position, number in zip(indices.tolist(), wanted.tolist()):
        expected[position] = nearest(number, numbers)
        lost += numbers[expected[position]] == numbers[before[position]]
    assert after == bytes(expected) != before
    assert (report.changes, report.lost) == (300, lost)


def test_ties_in_float8_go_to_the_even_byte(tmp_path):
    weight = torch.tensor([[1.0, 1.125, 1.25, 0.0]]).to(torch.float8_e4m3fn)
    places = torch.arange(4, dtype=torch.int32)
    changes = SparseDelta({"a.weight": SparseEntry(places, torch.tensor([1 / 16, 1 / 16, 1 / 16, 2.0**-10]), (1, 4))})
    before, after, report = baked_bytes(tmp_path, {"a.weight": weight}, changes)
    assert torch.frombuffer(bytearray(after), dtype=torch.float8_e4m3fn).tolist() == [1.0, 1.25, 1.25, 0.0]
    assert report.lost == 3 and "3 of 4 changes (75.0%)" in report.text() and "fp16" in report.text()


def test_a_change_that_float8_cannot_hold_is_refused_and_nothing_left_behind(tmp_path):
    base = tmp_path / "base.safetensors"
    save_file({"a.weight": torch.full((4, 4), 440.0).to(torch.float8_e4m3fn)}, base)
    changes = SparseDelta({"a.weight": SparseEntry(torch.tensor([3], dtype=torch.int32), torch.tensor([64.0]), (4, 4))})
    refused(base, changes, "'a.weight' larger than.*lower strength")


BYTES = (torch.arange(600) % 251).to(torch.uint8).view(600, 1)
ONE = torch.ones(1)
NOT_EXACT = {
    "int8": ({"a.weight": BYTES[:600].view(torch.int8).view(20, 30), "a.weight_scale": torch.ones(20, 1)}, "I8"),
    "NF4": (
        {"a.weight": BYTES, "a.weight.absmax": ONE, "a.weight.quant_state.bitsandbytes__nf4": BYTES[:99] + 1}, "U8",
    ),
    "nvfp4": ({"a.weight": BYTES[:300].view(20, 15), "a.weight_scale_2": torch.ones(1)}, "U8"),
    "float8 with scales for blocks": (
        {"a.weight": float8_weight(torch.float8_e4m3fn), "a.weight_scale_inv": torch.ones(2, 2)}, "weight_scale_inv",
    ),
    "float8 with a scale for each row": (
        {"a.weight": float8_weight(torch.float8_e4m3fn), "a.weight_scale": torch.ones(40, 1)}, "weight_scale",
    ),
    "float8 with scales that are exponents": (
        {"a.weight": float8_weight(torch.float8_e4m3fn), "a.weight_scale": torch.ones(1, dtype=torch.uint8)},
        "weight_scale",
    ),
    "float8 with two scales": (
        {"a.weight": float8_weight(torch.float8_e4m3fn), "a.weight_scale": ONE, "a.scale_weight": ONE * 2},
        "scale_weight, weight_scale",
    ),
    "float16 with a scale": ({"a.weight": torch.ones(SHAPE).half(), "a.scale_weight": torch.ones(1)}, "scale_weight"),
    "packed for another engine": ({"a.qweight": torch.ones(5, 30, dtype=torch.int32), "b.weight": ONE}, "a.qweight"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_EXACT)
def test_other_quantisations_are_refused_by_name_with_a_remedy(tmp_path, kind):
    tensors, words = NOT_EXACT[kind]
    base = tmp_path / "base.safetensors"
    save_file(tensors, base)
    changes = SparseDelta({"a.weight": entry(SHAPE, 5)})
    refused(base, changes, f"base.safetensors.*{words}.*fp16, bf16 or fp32", UnsupportedModelError)


def test_gguf_and_a_scale_that_is_no_number_are_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="GGUF.*fp16"):
        bake(tmp_path / "model.gguf", tmp_path / "out.safetensors", delta())
    for scale in (0.0, -1.0, math.nan, math.inf):
        base = tmp_path / "base.safetensors"
        save_file({"a.weight": float8_weight(torch.float8_e4m3fn), "a.scale_weight": torch.tensor(scale)}, base)
        refused(base, SparseDelta({"a.weight": entry(SHAPE, 5)}), "a.scale_weight.*Download it again")


def test_a_change_in_float16_that_its_strength_makes_too_small_for_float16_is_counted_as_lost():
    smallest = torch.tensor([2.0**-24, 0.0, 1.0], dtype=torch.float16)
    change = SparseEntry(torch.tensor([0, 1, 2], dtype=torch.int32), smallest, (3,))
    loss = Loss()
    elements.add_("a", torch.ones(3), change, 0.25, loss)
    assert loss.lost == 1


def test_a_change_that_another_precision_of_the_result_is_too_coarse_for_is_counted_as_lost():
    change = SparseEntry(torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0.01, 0.002]), (3,))
    loss = Loss()
    assert elements.added_to("a", torch.ones(3), change, 1.0, torch.bfloat16, loss).tolist() == [1 + 2**-7, 1, 1]
    assert loss.lost == 1


def test_a_scaled_float8_file_is_to_the_host_what_was_meant(comfy, tmp_path):
    """The host's own reading of scales: weights of the baked file against those of the base, in float32."""
    import comfy.sd as sd

    from tests.support.toy_models import sd15_unet_state_dict

    name, scale = "time_embed.0", 0.002
    tensors = sd15_unet_state_dict()
    tensors[f"{name}.weight"] = (tensors[f"{name}.weight"] / scale).to(torch.float8_e4m3fn)
    tensors |= {f"{name}.scale_weight": torch.tensor(scale), "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    base, target = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, base)
    change = entry(tuple(tensors[f"{name}.weight"].shape), 5000)
    bake(base, target, SparseDelta({f"diffusion_model.{name}.weight": change}))
    weights = []
    for path in (base, target):
        loaded = sd.load_diffusion_model(str(path), model_options={"dtype": torch.float32})
        weights.append(loaded.model.diffusion_model.time_embed[0].weight.dequantize().view(-1))
    before, after = weights
    places = change.indices.long()
    untouched = torch.ones(len(before), dtype=torch.bool)
    untouched[places] = False
    assert torch.equal(before[untouched], after[untouched])
    step = (before[places] + change.values).abs() / 16 + scale * 2.0**-10  # half a step of float8
    assert ((after - before)[places] - change.values).abs().le(1.001 * step).all()


def test_the_node_says_how_much_float8_took_away(comfy, monkeypatch):
    lines = []
    monkeypatch.setattr(comfy.pack_module("nodes.bake"), "show_text", lambda node_class, text: lines.append(text))
    path = comfy.base / "models" / "checkpoints" / "float8.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({"a.weight": torch.ones(4, 4).to(torch.float8_e4m3fn)}, path)
    classes = comfy.pack_module("sara_core.delta")
    small = classes.SparseEntry(torch.tensor([1, 2], dtype=torch.int32), torch.tensor([0.01, 0.5]), (4, 4))
    comfy.execute("SaRABake", ckpt_name=path.name, delta=classes.SparseDelta({"a.weight": small}))
    assert "1 of 2 changes (50.0%) are lost in its rounding. A version of the checkpoint in" in lines[-1]
