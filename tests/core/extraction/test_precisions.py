"""Models of different precisions, or with other things beside their layers: rounding is no change, a mark no layer."""

import itertools

import pytest
import torch
from safetensors.torch import load_file, save_file

from sara_core import DeltaError, UnsupportedModelError, extract
from sara_core.extraction.extract import extract_with_report
from sara_core.models.bake import bake
from sara_core.models.base import opened_base
from sara_core.models.comparison import rounded_alike
from sara_core.models.quantised.microscaled import Nvfp4
from tests.core.models.test_quantised_formats import nvfp4

PRECISIONS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
PAIRS = list(itertools.permutations(PRECISIONS, 2))


def numbers(seed=0, count=20000):
    generator = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** (torch.rand(count, generator=generator) * 12 - 9)
    return {"a.weight": (torch.randn(count, generator=generator, dtype=torch.float64) * sizes).view(100, -1)}


@pytest.mark.parametrize("one, other", PAIRS, ids=str)
def test_a_model_and_its_copy_in_another_precision_are_the_same(one, other):
    weights = numbers()
    base, tuned = ({name: w.to(dtype) for name, w in weights.items()} for dtype in (one, other))
    with pytest.raises(DeltaError, match="same diffusion model"):
        extract(base, tuned)


@pytest.mark.parametrize("one, other", PAIRS, ids=str)
def test_only_what_was_changed_is_extracted_and_the_rest_is_counted(one, other):
    weights = numbers()
    changed = {name: weight.clone() for name, weight in weights.items()}
    changed["a.weight"].view(-1)[::50] *= 1.5
    base = {name: weight.to(one) for name, weight in weights.items()}
    tuned = {name: weight.to(other) for name, weight in changed.items()}
    delta, report = extract_with_report(base, tuned)
    assert {int(place) % 50 for place in delta.entries["a.weight"].indices} == {0}
    assert report.changed == report.kept <= 400 and report.changed > 250
    differing = base["a.weight"].double() != tuned["a.weight"].double()
    assert report.rounded == int(differing.sum()) - report.changed > 0
    assert f"{report.rounded:,} more differ by nothing but rounding" in report.text()


def test_a_change_of_one_step_of_the_narrower_precision_is_one():
    base = {"a.weight": torch.linspace(0.5, 4, 4096)}
    step = torch.nextafter(base["a.weight"].half(), torch.tensor(9.0, dtype=torch.float16))
    assert int((~rounded_alike(base["a.weight"], step)).sum()) == 4096
    assert extract_with_report(base, {"a.weight": step})[1].changed == 4096


def test_a_support_has_no_changes_that_are_rounding():
    base = {name: weight.float() for name, weight in numbers().items()}
    tuned = {name: weight.half() for name, weight in base.items()}
    tuned["a.weight"].view(-1)[7] += 1
    positions = extract(base, {name: weight + 1 for name, weight in base.items()}, count=20000)
    delta, report = extract_with_report(base, tuned, support=positions)
    assert torch.count_nonzero(delta.entries["a.weight"].values) == 1 and report.inexact == 0


def test_numbers_too_large_for_the_narrower_precision_are_still_refused():
    with pytest.raises(DeltaError, match="NaN or infinite"):
        extract({"a.weight": torch.tensor([1e30, 1.0])}, {"a.weight": torch.tensor([1e30, 2.0]).half()})


MARKS = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0), "edm_vpred.sigma_max": torch.tensor(120.0),
         "model_ema.decay": torch.tensor(0.999), "ema.a.weight": torch.ones(30, 40)}  # fmt: skip


@pytest.fixture(params=["", "model.diffusion_model.", "net."])
def pair(request, tmp_path):
    """(prefix, weights, saved) of a base and of a model tuned from it."""
    weights = {f"blocks.{i}.weight": torch.randn(8, 8) for i in range(8)}

    def saved(name, changed=False, extra=(), inside=()):
        own = {
            f"{request.param}{own}": weight + changed * (own == "blocks.3.weight") for own, weight in weights.items()
        }
        inner = {request.param + own: tensor for own, tensor in dict(inside).items()}
        save_file({**own, **inner, **dict(extra)}, tmp_path / f"{name}.safetensors")
        return tmp_path / f"{name}.safetensors"

    return saved


@pytest.mark.parametrize("side", ["base", "tuned", "both"])
def test_marks_and_averages_make_no_other_kind_of_model(pair, side):
    marked = {"base": MARKS, "tuned": MARKS, "both": MARKS}
    base = pair("base", extra=marked[side] if side != "tuned" else ())
    other = {**MARKS, "edm_vpred.sigma_max": torch.tensor(80.0)}
    tuned = pair("tuned", changed=True, extra=other if side != "base" else ())
    delta, report = extract_with_report(base, tuned)
    assert delta.entries.keys() == {"diffusion_model.blocks.3.weight"} and report.elements == 8 * 64
    with opened_base(base) as opened:
        assert len(opened.shapes) == 8
    bake(base, base.parent / "baked.safetensors", delta)
    assert load_file(base.parent / "baked.safetensors").keys() == load_file(base).keys()


@pytest.mark.parametrize("inside", [{"logvar": torch.zeros(5)}, {"step": torch.tensor(7)}, {"betas": torch.rand(3)}])
def test_what_is_no_layer_on_one_side_is_named_and_not_compared(pair, inside):
    base, tuned = pair("base"), pair("tuned", changed=True, inside=inside)
    for files in ((base, tuned), (tuned, base)):
        delta, report = extract_with_report(*files)
        assert delta.entries.keys() == {"diffusion_model.blocks.3.weight"}
        assert f"only 'tuned.safetensors' has them: {next(iter(inside))}" in report.text()


def test_a_layer_on_one_side_alone_is_still_another_kind_of_model(pair):
    with pytest.raises(DeltaError, match="another kind of model"):
        extract(pair("base"), pair("tuned", changed=True, inside={"guidance_in.in_layer.weight": torch.zeros(2, 2)}))


def scaled_fp8(seed=0, scale=0.25):
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randn(128, 64, generator=generator).to(torch.float8_e4m3fn)
    return {"a.weight": packed, "a.scale_weight": torch.tensor(scale), "b.weight": torch.ones(3, 3)}


def saved(folder, name, tensors):
    save_file(tensors, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def test_two_models_in_one_quantisation_differ_as_they_do_dequantised(tmp_path):
    one, other = scaled_fp8(), scaled_fp8(scale=0.5)
    other["a.weight"] = one["a.weight"].clone()
    other["b.weight"] = one["b.weight"] * 2
    delta, report = extract_with_report(saved(tmp_path, "one", one), saved(tmp_path, "other", other))
    changed = delta.entries["diffusion_model.a.weight"]
    assert torch.equal(changed.values, one["a.weight"].float().view(-1)[changed.indices.long()] * 0.25)
    assert delta.entries["diffusion_model.b.weight"].values.eq(1).all() and "fp8 e4m3 with a scale" in report.text()


def test_weights_that_are_packed_have_their_own_shape(tmp_path):
    one, other = nvfp4(), nvfp4()
    other["a.weight"][0, 0] = 0x23  # 1.0 and 1.5 in place of two times 1.0
    delta = extract(saved(tmp_path, "one", one), saved(tmp_path, "other", other))
    entry = delta.entries["diffusion_model.a.weight"]
    assert entry.shape == (128, 64) and entry.indices.tolist() == [1] and entry.values.tolist() == [0.5]
    assert Nvfp4().decode(torch.tensor([0x2, 0x3], dtype=torch.uint8)).tolist() == [1.0, 1.5]


@pytest.mark.parametrize("other", [
    {"a.weight": torch.ones(128, 64).bfloat16(), "b.weight": torch.ones(3, 3)},
    {"a.weight": torch.ones(128, 64).to(torch.float8_e5m2), "b.weight": torch.ones(3, 3)},
    nvfp4() | {"b.weight": torch.ones(3, 3)},
], ids=["bf16", "fp8 without a scale", "nvfp4"])  # fmt: skip
def test_models_that_were_rounded_differently_are_not_compared(tmp_path, other):
    one, other = saved(tmp_path, "one", scaled_fp8()), saved(tmp_path, "other", other)
    for pair in ((one, other), (other, one)):
        with pytest.raises(UnsupportedModelError, match="a.weight' is stored as .*Use both models in fp16, bf16 or"):
            extract(*pair)
