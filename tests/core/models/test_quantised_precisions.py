"""Whatever the precision of a delta's values, of scales and of weights: all is computed in float32."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sara_core.delta import SparseDelta, SparseEntry
from sara_core.models.bake import bake
from sara_core.models.identity import BASE, compare, identity_of
from sara_core.models.quantised import blocks
from sara_core.models.quantised.formats import Layer
from sara_core.models.quantised.int8 import Int8
from sara_core.models.quantised.loss import Loss
from sara_core.models.quantised.microscaled import Mxfp8, Nvfp4
from sara_core.models.survey import WeightSurvey
from tests.core.models.test_quantised_formats import described, int8, nvfp4

ROWS, COLUMNS = 128, 64
FLOAT8 = torch.float8_e4m3fn


def mxfp8():
    exponents = torch.full((128, 4), 127 - 4, dtype=torch.uint8)
    weight = torch.linspace(-400, 400, ROWS * COLUMNS).view(ROWS, COLUMNS).to(FLOAT8)
    return {"a.weight": weight, "a.weight_scale": exponents, "a.comfy_quant": described("mxfp8")}


def rows_of_int8(**options):
    weight = torch.linspace(-127, 127, ROWS * COLUMNS).round().to(torch.int8).view(ROWS, COLUMNS)
    scales = torch.linspace(0.001, 0.02, ROWS).view(ROWS, 1)
    return {"a.weight": weight, "a.weight_scale": scales, "a.comfy_quant": described("int8_tensorwise", **options)}


def plain(dtype):
    return {"a.weight": torch.linspace(-1, 1, ROWS * COLUMNS).view(ROWS, COLUMNS).to(dtype)}


def scaled_float8():
    return {"a.weight": plain(FLOAT8)["a.weight"], "a.scale_weight": torch.tensor(0.037)}


BASES = {
    "int8 by rows": rows_of_int8, "int8": lambda: rows_of_int8() | {"a.weight_scale": torch.tensor(0.01)},
    "int8 turned": lambda: rows_of_int8(convrot=True, convrot_groupsize=16), "float8": lambda: plain(FLOAT8),
    "float8 scaled": scaled_float8, "mxfp8": mxfp8, "nvfp4": nvfp4,
    "nvfp4 smoothed": lambda: nvfp4() | {"a.pre_quant_scale": torch.linspace(0.5, 2, COLUMNS).bfloat16()},
    "fp16": lambda: plain(torch.float16), "bf16": lambda: plain(torch.bfloat16), "fp32": lambda: plain(torch.float32),
}  # fmt: skip


def changes(dtype):
    indices = torch.arange(0, ROWS * COLUMNS, 7, dtype=torch.int32)
    values = torch.randn(len(indices), generator=torch.Generator().manual_seed(1)).bfloat16() * 0.3
    return SparseDelta({"a.weight": SparseEntry(indices, values.to(dtype), (ROWS, COLUMNS))})


@pytest.mark.parametrize("precision", ["as the file", "bf16"])
@pytest.mark.parametrize("kind", BASES)
def test_the_same_changes_in_half_precision_make_the_same_file(tmp_path, kind, precision):
    save_file(BASES[kind](), tmp_path / "base.safetensors")
    made = {}
    for dtype in (torch.float32, torch.bfloat16):
        target = tmp_path / f"{dtype}.safetensors"
        report = bake(tmp_path / "base.safetensors", target, changes(dtype), 0.37, precision=precision)
        made[dtype] = (target.read_bytes(), report, report.share)
    assert made[torch.float32] == made[torch.bfloat16]
    assert made[torch.float32][0] != (tmp_path / "base.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_in_half_precision_count_as_what_they_are(tmp_path, dtype):
    scales = torch.tensor([[0.3], [0.007]]).to(dtype)
    change = SparseDelta({"a.weight": SparseEntry(torch.tensor([1, 6], dtype=torch.int32), torch.ones(2), (2, 4))})
    made = {}
    for precision in ("as the file", "fp16"):
        for own in (scales, scales.float()):
            save_file(int8() | {"a.weight_scale": own}, tmp_path / "base.safetensors")
            bake(tmp_path / "base.safetensors", tmp_path / "out.safetensors", change, precision=precision)
            made[precision, own.dtype] = load_file(tmp_path / "out.safetensors")
        half, single = made[precision, dtype], made[precision, torch.float32]
        assert torch.equal(half["a.weight"], single["a.weight"])
    stored = made["as the file", dtype]["a.weight_scale"]
    # The second row holds no 1.0 and gets another scale.
    assert stored.dtype == dtype and stored[0] == scales[0] and stored[1] > scales[1]


@pytest.mark.parametrize("codec", [Int8(), Mxfp8(), Nvfp4()], ids=lambda codec: codec.name)
def test_codes_stand_for_numbers_in_single(codec):
    codes = codec.encode(torch.tensor([0.0, 1.0, -2.0]))
    assert codec.decode(codes).dtype == torch.float32 and codec.decode(codes).tolist() == [0, 1, -2]


def test_nvfp4_rounds_to_the_nearest_however_often_it_is_made():
    between = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    for codec in (Nvfp4(), Nvfp4()):
        assert codec.encode(torch.nextafter(between, torch.tensor(0.0))).tolist() == list(range(7))
        assert codec.encode(torch.nextafter(between, torch.tensor(9.0))).tolist() == list(range(1, 8))


def test_exponents_of_mxfp8_count_from_127(tmp_path):
    save_file(mxfp8(), tmp_path / "base.safetensors")
    entry = SparseEntry(torch.tensor([0], dtype=torch.int32), torch.ones(1), (ROWS, COLUMNS))
    delta = SparseDelta({"a.weight": entry})
    bake(tmp_path / "base.safetensors", tmp_path / "out.safetensors", delta, precision="bf16")
    expected = mxfp8()["a.weight"].float() * 2.0**-4
    expected[0, 0] += 1
    assert torch.equal(load_file(tmp_path / "out.safetensors")["a.weight"], expected.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_smoothing_of_any_precision_leaves_the_weight_in_single(dtype):
    tensors = {name.removeprefix("a."): tensor for name, tensor in nvfp4().items()}
    smoothing = torch.full((COLUMNS,), 2.0, dtype=dtype)
    weight = Nvfp4().dequantised(Layer("a.weight", "file", {**tensors, "pre_quant_scale": smoothing}, {}))
    assert weight.dtype == torch.float32 and weight[0, :2].tolist() == [2.0, 2.0]


def test_what_arrived_in_a_row_is_measured_from_what_was_there(tmp_path):
    save_file(int8(), tmp_path / "base.safetensors")
    change = SparseDelta({"a.weight": SparseEntry(torch.tensor([1, 6], dtype=torch.int32), torch.ones(2), (2, 4))})
    report = bake(tmp_path / "base.safetensors", tmp_path / "out.safetensors", change)
    assert (report.lost, report.share, report.rescaled) == (0, 1.0, 0)


@pytest.mark.parametrize("rows, columns", [(1, 1), (130, 5), (128, 4)])
def test_scales_come_out_of_their_tiles_in_one_piece(rows, columns):
    scales = torch.randint(0, 255, (rows, columns), dtype=torch.uint8)
    tiled = torch.zeros(blocks.swizzled_size(rows, columns), dtype=torch.uint8)
    assert blocks.swizzle_(tiled, scales) is tiled
    found = blocks.unswizzled(tiled, rows, columns)
    assert torch.equal(found, scales) and found.is_contiguous()


def test_parameters_are_known_and_counted_as_other_tensors_are():
    layers = torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.Conv2d(2, 3, 3)])
    weights = {name: parameter for name, parameter in layers.named_parameters() if parameter.dim() > 1}
    assert compare(identity_of(weights), weights).kind == BASE
    assert identity_of(weights) == identity_of({name: weight.detach() for name, weight in weights.items()})
    assert WeightSurvey(weights).elements == 64 + 54


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_any_precision_are_counted_in_single(dtype):
    weights = {"a": torch.tensor([*torch.linspace(-0.5, 0.5, 999).tolist(), 0.002]).to(dtype)}
    if dtype == torch.float64:
        weights["a"][-1] = 0.002  # which is below the nearest number that float32 has
    one, other = WeightSurvey(weights), WeightSurvey({"a": weights["a"].float()})
    assert one.rows() == other.rows() and len(one.rows()) > 15


def test_what_is_lost_is_counted_where_something_was_to_arrive():
    loss, other = Loss(), Loss(1, 2, 3.0, 4.0)
    before, infinity = torch.tensor([1.0, 1.0, 1.0, float("inf")]), float("inf")
    loss.count(before, torch.tensor([1.0, 1.0, 1.5, infinity]), torch.tensor([0.0, 0.25, 1.0, 0.0]))
    assert (loss.lost, loss.rescaled, loss.wanted, loss.arrived) == (1, 0, 1.0625, 0.5) and loss.share == 0.5 / 1.0625
    loss.add(other)
    assert loss == Loss(2, 2, 4.0625, 4.5) and Loss().share == 1.0
