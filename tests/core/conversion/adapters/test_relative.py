"""Adapters whose change depends on the base's own weights, with ComfyUI's own loader as the measure of its reading."""

import math

import pytest
import torch

from sara_core.conversion.read import read_delta
from sara_core.errors import DeltaError
from sara_core.models.base import Base
from tests.support.adapter_files import (
    CONVOLUTION, LINEAR, MODULE, adapter_file, assert_same_as_the_hosts, boft, dense, dora, family_file, glora, locon,
    loha, lokr, lora, oft, random,
)  # fmt: skip
from tests.support.family_models import FAMILIES

ROWS, COLUMNS = LINEAR
CONV = (320, 320)
LINEAR_KINDS = {
    "DoRA by rows": lambda: dora(lora(*LINEAR), *LINEAR),
    "DoRA by columns": lambda: dora(lora(*LINEAR), *LINEAR, by_column=True),
    "DoRA of LoHa": lambda: dora(loha(*LINEAR), *LINEAR, by_column=True),
    "DoRA of LoKr": lambda: dora(lokr(*LINEAR, second=True), *LINEAR),
    "DoRA of GLoRA": lambda: dora(glora(*LINEAR), *LINEAR),
    "DoRA in float16": lambda: {part: t.half() for part, t in dora(lora(*LINEAR), *LINEAR).items()},
    "OFT": lambda: oft(ROWS, 8),
    "OFT rescaled": lambda: oft(ROWS, 8) | {".rescale": 1 + 0.1 * random(ROWS, 1)},
    "OFT of one block": lambda: oft(ROWS, ROWS),
    "OFT with a bound that counts": lambda: oft(ROWS, 8, alpha=1.5),
    "OFT with a bound that does not": lambda: oft(ROWS, 8, alpha=1e4),
    "BOFT": lambda: boft(ROWS, 8, 3, alpha=0.0),
    "BOFT of all its steps": lambda: boft(ROWS, 2, 8, alpha=0.0),
    "BOFT with a bound and factors": lambda: boft(ROWS, 8, 4, alpha=2.0, rescale=(1,)),
    "GLoRA": lambda: glora(*LINEAR) | {".alpha": torch.tensor(2.0)},
    "GLoRA of an early LyCORIS": lambda: glora(*LINEAR, early=True) | {".alpha": torch.tensor(2.0)},
    "weights that replace": lambda: {".set_weight": random(*LINEAR)},
}  # fmt: skip
CONVOLUTION_KINDS = {
    "DoRA of LoCon by rows": lambda: dora(lora(*CONVOLUTION), *CONVOLUTION),
    "DoRA of LoCon by columns": lambda: dora(lora(*CONVOLUTION), *CONVOLUTION, by_column=True),
    "DoRA of LoCon with a core": lambda: dora(locon(*CONVOLUTION), *CONVOLUTION),
    "DoRA of LoHa with a core": lambda: dora(loha(*CONVOLUTION, core=True), *CONVOLUTION, by_column=True),
    "OFT of a convolution": lambda: oft(320, 16),
    "BOFT of a convolution": lambda: boft(320, 4, 5, alpha=0.0, rescale=(1, 1, 1)),
    "GLoRA of a convolution": lambda: glora(*CONVOLUTION),
    "GLoRA of a convolution, early": lambda: glora(*CONVOLUTION, early=True),
    "weights of a convolution": lambda: {".set_weight": random(320, 320, 3, 3)},
}  # fmt: skip
KINDS = LINEAR_KINDS | CONVOLUTION_KINDS


@pytest.fixture(scope="module")
def sd15(comfy, tmp_path_factory):
    """The small SD1.5 of the host, and its checkpoint file."""
    return FAMILIES["SD1.5"].model(), family_file("SD1.5", tmp_path_factory.mktemp("base") / "base.safetensors")


def module_of(kind):
    return MODULE[2 if kind in LINEAR_KINDS else 4]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_a_weight_as_in_comfyui(tmp_path, sd15, kind):
    model, base = sd15
    path = adapter_file(tmp_path / "x.safetensors", module_of(kind), KINDS[kind]())
    delta = read_delta(path, base, density=1.0, reading="comfyui").delta
    names = assert_same_as_the_hosts(delta, model, path)
    assert list(names) == [module_of(kind) + ".weight"]


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("dims", [2, 4])
def test_ia3_multiplies_channels(tmp_path, sd15, dims, on_input):
    """By LyCORIS's definition: ComfyUI does not read it."""
    weight = sd15[0].model.state_dict()[MODULE[dims] + ".weight"]
    channels = weight.shape[1 if on_input else 0]
    factors = 0.1 * random(channels)
    shape = (channels,) if dims == 2 else (1, channels, 1, 1)
    path = adapter_file(tmp_path / "x.safetensors", MODULE[dims],
                        {".weight": factors.view(shape), ".on_input": torch.tensor(int(on_input))})  # fmt: skip
    ones = [1] * (dims - 2)
    expected = weight * (factors.view(1, -1, *ones) if on_input else factors.view(-1, 1, *ones))
    found = dense(read_delta(path, sd15[1], density=1.0).delta)
    assert list(found) == [MODULE[dims] + ".weight"]
    assert torch.equal(found[MODULE[dims] + ".weight"], expected)


@pytest.mark.parametrize("tensors", [
    {".weight": random(7), ".on_input": torch.tensor(0)},
    {".weight": random(1), ".on_input": torch.tensor(1)},
    {".on_input": torch.tensor(1)},
    {".weight": random(1280), ".on_input": torch.tensor([0, 1])},
    {".weight": torch.ones(1280, dtype=torch.int64), ".on_input": torch.tensor(0)},
    {".weight": random(320), ".on_input": torch.tensor(math.nan)},
], ids=["another size", "one factor", "no factors", "two answers", "whole numbers", "no answer"])  # fmt: skip
def test_damaged_ia3_is_refused(tmp_path, sd15, tensors):
    path = adapter_file(tmp_path / "x.safetensors", MODULE[2], tensors)
    with pytest.raises(DeltaError):
        read_delta(path, sd15[1], density=1.0)


@pytest.mark.parametrize("module, rows, columns, rank, early", [
    ("input_blocks.1.1.transformer_blocks.0.attn1.to_q", 320, 320, 320, False),
    ("time_embed.0", 1280, 320, 320, True),
    ("input_blocks.1.1.transformer_blocks.0.attn1.to_q", 320, 320, 4, False),
])  # fmt: skip
def test_square_weights_and_large_ranks_do_not_confuse_the_layouts_of_glora(
    tmp_path, sd15, module, rows, columns, rank, early
):
    """Where both have the same shapes, of a square weight, or some of them."""
    module = f"diffusion_model.{module}"
    path = adapter_file(tmp_path / "x.safetensors", module, glora(rows, columns, rank=rank, early=early))
    assert_same_as_the_hosts(read_delta(path, sd15[1], density=1.0).delta, sd15[0], path)


def test_what_replaces_biases_and_norms_is_read_too(tmp_path, sd15):
    names = ("diffusion_model.time_embed.0.bias", "diffusion_model.out.0")
    shapes = (1280, 320)
    path = adapter_file(tmp_path / "x.safetensors", "",
                        {f"{name}.set_weight": random(shape) for name, shape in zip(names, shapes)})  # fmt: skip
    assert_same_as_the_hosts(read_delta(path, sd15[1], density=1.0).delta, sd15[0], path)


def test_in_diffusers_names_a_part_of_a_fused_weight_changes_by_itself(tmp_path, comfy):
    """DoRA of Flux's keys, whose columns' norms are those of the keys alone."""
    base = family_file("Flux", tmp_path / "base.safetensors")
    tensors = {}
    for number, by_column in enumerate((True, False)):
        module = ("attn.to_k", "attn.add_v_proj")[number]
        one = dora(lora(128, 128), 128, 128, by_column=by_column)
        tensors |= {f"transformer_blocks.0.{module}{part}": tensor for part, tensor in one.items()}
    path = adapter_file(tmp_path / "x.safetensors", "transformer.", tensors)
    delta = read_delta(path, base, density=1.0, reading="comfyui").delta
    assert_same_as_the_hosts(delta, FAMILIES["Flux"].model(), path)


@pytest.mark.parametrize("kind", ["DoRA by columns", "OFT", "BOFT", "GLoRA"])
def test_the_base_in_half_precision_is_taken_as_it_is(tmp_path, comfy, kind):
    from safetensors.torch import load_file, save_file

    whole = family_file("SD1.5", tmp_path / "whole.safetensors")
    save_file({name: tensor.half() for name, tensor in load_file(whole).items()}, tmp_path / "half.safetensors")
    path = adapter_file(tmp_path / "x.safetensors", MODULE[2], KINDS[kind]())
    delta = read_delta(path, tmp_path / "half.safetensors", density=1.0).delta
    assert_same_as_the_hosts(delta, FAMILIES["SD1.5"].model(dtype=torch.float16), path)


def test_the_density_cuts_them_like_any_other(tmp_path, sd15):
    path = adapter_file(tmp_path / "x.safetensors", MODULE[2], dora(lora(*LINEAR), *LINEAR))
    (whole,) = dense(read_delta(path, sd15[1], density=1.0).delta).values()
    conversion = read_delta(path, sd15[1], density=0.002)
    (entry,) = conversion.delta.entries.values()
    kept = whole.view(-1).abs().topk(len(entry.indices)).indices.sort().values
    assert torch.equal(entry.indices.long(), kept) and torch.equal(entry.values, whole.view(-1)[kept])
    assert conversion.lost == pytest.approx(1 - float(entry.values.square().sum() / whole.square().sum()), abs=1e-5)


def test_only_the_weights_that_a_change_depends_on_are_read(tmp_path, sd15, monkeypatch):
    seen, weight = [], Base.weight
    monkeypatch.setattr(Base, "weight", lambda base, name: seen.append(name) or weight(base, name))
    tensors = {MODULE[2] + part: tensor for part, tensor in dora(lora(*LINEAR), *LINEAR).items()}
    tensors |= {MODULE[4] + part: tensor for part, tensor in lora(*CONVOLUTION).items()}
    read_delta(adapter_file(tmp_path / "x.safetensors", "", tensors), sd15[1], density=0.01)
    assert set(seen) == {"time_embed.0.weight"}


@pytest.mark.parametrize("kind", ["DoRA by rows", "OFT", "BOFT", "GLoRA", "weights that replace"])
def test_without_a_base_it_says_how_to_give_one(tmp_path, kind):
    path = adapter_file(tmp_path / "x.safetensors", MODULE[2], KINDS[kind]())
    with pytest.raises(DeltaError, match="beside the base model.*give it.* as base\\."):
        read_delta(path, density=0.1)


def test_what_depends_on_a_quantised_base_depends_on_its_dequantised_weight(tmp_path, sd15):
    from safetensors.torch import load_file, save_file

    weights = load_file(sd15[1])
    name = "model." + MODULE[2]
    packed, scale = (weights[f"{name}.weight"] * 8).to(torch.float8_e4m3fn), torch.tensor(0.125)
    dequantised = weights | {f"{name}.weight": packed.float() * scale}
    save_file(dequantised, tmp_path / "fp32.safetensors")
    save_file(weights | {f"{name}.weight": packed, f"{name}.scale_weight": scale}, tmp_path / "fp8.safetensors")
    path = adapter_file(tmp_path / "x.safetensors", MODULE[2], dora(lora(*LINEAR), *LINEAR))
    found, expected = (
        read_delta(path, tmp_path / f"{base}.safetensors", density=0.1).delta.entries for base in ("fp8", "fp32")
    )
    assert found.keys() == expected.keys()
    for one, entry in expected.items():
        assert torch.equal(found[one].indices, entry.indices) and torch.equal(found[one].values, entry.values)


GOOD = lora(*LINEAR)
SPOILED = {
    "DoRA of one number too many": GOOD | {".dora_scale": random(1281, 1)},
    "DoRA of a vector": GOOD | {".dora_scale": random(1280)},
    "DoRA that would broadcast to much": GOOD | {".dora_scale": random(1280, 320)},
    "DoRA of more dimensions": GOOD | {".dora_scale": random(1280, 1, 1, 1)},
    "DoRA alone": {".dora_scale": random(1280, 1)},
    "DoRA NaN": GOOD | {".dora_scale": random(1280, 1) * math.nan},
    "DoRA of a layer without columns": {".diff": random(1280), ".dora_scale": random(1280, 1)},
    "two magnitudes": GOOD | {".dora_scale": random(1280, 1), ".lora_magnitude_vector": random(1280)},
    "OFT of other rows": {".oft_blocks": random(4, 4, 4)},
    "OFT of one block for all": {".oft_blocks": random(1, 8, 8)},
    "OFT of blocks that are not square": {".oft_blocks": random(160, 8, 4)},
    "OFT of blocks that broadcast": {".oft_blocks": random(160, 1, 8)},
    "OFT without blocks": {".oft_blocks": random(160, 0, 0)},
    "OFT in two dimensions": {".oft_blocks": random(160, 64)},
    "OFT in five dimensions": {".oft_blocks": random(1, 1, 160, 8, 8)},
    "OFT infinite": {".oft_blocks": random(160, 8, 8) * math.inf},
    "OFT whose bound is no number": oft(ROWS, 8, alpha=math.nan),
    "OFT of whole numbers": {".oft_blocks": torch.ones(160, 8, 8).int()},
    "OFT and a LoRA": GOOD | {".oft_blocks": random(160, 8, 8)},
    "BOFT of odd blocks": {".oft_blocks": random(2, 256, 5, 5)},
    "BOFT of too many steps": {".oft_blocks": random(9, 160, 8, 8)},
    "BOFT of very many steps": {".oft_blocks": random(40, 1, 2, 2)},
    "BOFT of endless empty steps": {".oft_blocks": torch.empty(10**9, 0, 2, 2)},
    "BOFT without steps": {".oft_blocks": torch.empty(0, 160, 8, 8)},
    "BOFT whose factors would broadcast": boft(ROWS, 8, 2, 0.0) | {".rescale": random(300, 1, 1)},
    "GLoRA without a half": {f".{part}.weight": tensor for part, tensor in
                             (("a1", random(320, 4)), ("a2", random(4, 320)), ("b1", random(1280, 4)))},
    "GLoRA of another size": glora(640, 320),
    "GLoRA of a huge rank": glora(*LINEAR, rank=4097),
    "GLoRA of vectors": {f".{part}.weight": random(4) for part in ("a1", "a2", "b1", "b2")},
    "weights of another shape": {".set_weight": random(320, 1280)},
    "weights NaN": {".set_weight": random(*LINEAR) * math.nan},
    "weights and a difference": {".set_weight": random(*LINEAR), ".diff": random(*LINEAR)},
    "PEFT's magnitudes of another number": GOOD | {".lora_magnitude_vector": random(320)},
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILED)
def test_hostile_files_are_refused(tmp_path, sd15, what):
    path = adapter_file(tmp_path / "x.safetensors", MODULE[2], SPOILED[what])
    with pytest.raises(DeltaError):
        read_delta(path, sd15[1], density=0.5)


@pytest.mark.parametrize("part, number", [
    ("lora_up.weight", math.nan), ("lora_down.weight", -math.inf), ("dora_scale", math.inf), ("oft_blocks", math.nan),
    ("rescale", math.inf),
])  # fmt: skip
def test_numbers_that_are_none_are_refused_before_anything_is_computed(tmp_path, sd15, part, number):
    """Afterwards a division by infinity may have hidden them."""
    good = boft(ROWS, 8, 2, 1.0, rescale=(1,)) if part in ("oft_blocks", "rescale") else dora(lora(*LINEAR), *LINEAR)
    broken = good[f".{part}"].clone()
    broken.view(-1)[-1] = number
    path = adapter_file(tmp_path / "x.safetensors", MODULE[2], good | {f".{part}": broken})
    with pytest.raises(DeltaError, match=rf"{MODULE[2]}' cannot be used: it has values that are NaN or infinite \("):
        read_delta(path, sd15[1], density=0.5)


@pytest.mark.bits
@pytest.mark.parametrize("size", [5, 8])
@pytest.mark.parametrize("scale", [1e8, 1e10, 1e30, 3e38])
def test_a_rotation_without_numbers_is_refused(tmp_path, sd15, size, scale):
    """So large a block that nothing of the identity is left: an odd number of rows makes it singular, and then its
    solution is rounding errors, or none, as the processor has it."""
    blocks = random(1280 // size, size, size).clamp(-1, 1) * scale
    path = adapter_file(tmp_path / "x.safetensors", MODULE[2], {".oft_blocks": blocks})
    with pytest.raises(DeltaError, match="its numbers make no rotation"):
        read_delta(path, sd15[1], density=0.5)


@pytest.mark.bits
@pytest.mark.parametrize("size", [5, 8])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e5, 1e7])
def test_a_rotation_keeps_lengths_however_large_its_numbers(tmp_path, sd15, size, scale):
    blocks = random(1280 // size, size, size).clamp(-1, 1) * scale
    path = adapter_file(tmp_path / "x.safetensors", MODULE[2], {".oft_blocks": blocks})
    weight = sd15[0].model.state_dict()[MODULE[2] + ".weight"]
    change = dense(read_delta(path, sd15[1], density=1.0).delta)[MODULE[2] + ".weight"]
    before, after = (w.double().view(-1, size, w.shape[1]).norm(dim=1) for w in (weight, weight + change))
    assert float(((after - before) / before).abs().max()) <= 1e-5
    assert float(change.norm()) > 1e-4 * float(weight.norm())


@pytest.mark.bits
def test_a_bound_makes_a_rotation_of_numbers_of_any_size(tmp_path, sd15):
    """Also of those whose squares float32 cannot hold."""
    changes = []
    for scale in (1e3, 1e25):
        tensors = {".oft_blocks": random(256, 5, 5) * scale, ".alpha": torch.tensor(2.0)}
        path = adapter_file(tmp_path / f"{scale}.safetensors", MODULE[2], tensors)
        changes.append(dense(read_delta(path, sd15[1], density=1.0).delta)[MODULE[2] + ".weight"])
    assert float(changes[0].norm()) > 1e-3
    torch.testing.assert_close(*changes, rtol=0, atol=1e-6)


@pytest.mark.parametrize("by", ["magnitude", "columns"])
def test_dora_takes_the_direction_of_a_change_of_any_size(tmp_path, sd15, by):
    """Also of one whose norm float32 cannot sum up."""
    factors = {part: 1e12 * tensor for part, tensor in lora(*LINEAR).items()}
    scale = random(ROWS, seed=9).abs() if by == "magnitude" else random(1, COLUMNS, seed=9).abs()
    tensors = factors | {".lora_magnitude_vector" if by == "magnitude" else ".dora_scale": scale}
    path = adapter_file(tmp_path / "x.safetensors", MODULE[2], tensors)
    weight = sd15[0].model.state_dict()[MODULE[2] + ".weight"].double()
    tuned = weight + factors[".lora_up.weight"].double() @ factors[".lora_down.weight"].double()
    if by == "magnitude":
        expected = tuned / tuned.norm(dim=1, keepdim=True) * scale[:, None] - weight
    else:
        expected = tuned / tuned.norm(dim=0, keepdim=True) * scale - weight
    found = dense(read_delta(path, sd15[1], density=1.0).delta)[MODULE[2] + ".weight"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
