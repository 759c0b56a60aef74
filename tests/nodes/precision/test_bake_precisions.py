"""Baking into files of every precision: what the host makes of the result against its base and the delta."""

import pytest
import safetensors.torch
import torch

from sara_core.delta import SparseDelta, SparseEntry
from sara_core.errors import UnsupportedModelError
from sara_core.models.bake import bake
from tests.support import quantised_models

OWN = [
    "fp8 e4m3",
    "fp8 e5m2",
    "fp8 scaled, old",
    "fp8 scaled",
    "fp8 scaled by 1",
    "mxfp8",
    "nvfp4",
    "int8",
    "int8 convrot",
]
TURNED = ["convrot w4a4"]
# What shares a scale, or is turned together.
BLOCKS = {"mxfp8": 32, "nvfp4": 16, "int8 convrot": 64}
GGUF = [kind for kind in quantised_models.KINDS if kind.startswith("GGUF")]
STRENGTH = 0.7


def changes_of(weights):
    """Changes of a fiftieth of some quantised weights, by a tenth of what elements usually are, and of one bias."""
    generator, entries = torch.Generator().manual_seed(5), {}
    quantised = [name for name, weight in weights.items() if quantised_models.is_quantised(name, weight)]
    for name in [*quantised[::3], next(name for name in weights if name.endswith(".bias"))]:
        weight = weights[name].float()
        count = max(1, weight.numel() // 50)
        places = torch.randperm(weight.numel(), generator=generator)[:count].sort().values.to(torch.int32)
        values = torch.randn(count, generator=generator) * weight.std() / 3
        entries[f"diffusion_model.{name}"] = SparseEntry(places, values, tuple(weight.shape))
    return SparseDelta(entries)


def host_weights(comfy, path, family, names):
    """What the host, or the GGUF pack's loader, has of these weights, dequantised, float32."""
    precision = comfy.pack_module("nodes.host.precision")
    model = quantised_models.load(path, family).model.diffusion_model
    return {
        name: precision.dequantised(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]).cpu()
        for name in names
    }


def applied(weight, entry):
    wanted = weight.clone().view(-1)
    wanted[entry.indices.long()] += STRENGTH * entry.values
    return wanted.view(weight.shape)


@pytest.mark.parametrize(
    "kind, family", [*((kind, "Flux") for kind in OWN), ("fp8 scaled", "Z-Image"), ("nvfp4", "Z-Image")]
)
def test_in_its_own_format_the_host_finds_the_changes_and_nothing_else(comfy, tmp_path, kind, family):
    base = quantised_models.write(kind, family, tmp_path)
    target = tmp_path / "baked" / base.name
    target.parent.mkdir()
    delta = changes_of(quantised_models.bf16_weights(family))
    names = [name.removeprefix("diffusion_model.") for name in delta.entries]
    report = bake(base, target, delta, STRENGTH)
    stored, result = safetensors.torch.load_file(base), safetensors.torch.load_file(target)
    assert list(result) == list(stored)
    before, after = (host_weights(comfy, path, family, names) for path in (base, target))
    for name in names:
        entry = delta.entries[f"diffusion_model.{name}"]
        wanted, touched = applied(before[name], entry), torch.zeros(entry.shape, dtype=torch.bool)
        touched.view(-1)[entry.indices.long()] = True
        scale = name.removesuffix("weight") + "weight_scale"
        if kind == "int8 convrot" and scale in stored:  # rows with another scale
            touched |= result[scale] != stored[scale]
        beside = touched if kind not in BLOCKS else touched.view(-1, BLOCKS[kind]).any(1, keepdim=True)
        blocks = wanted.view(-1, BLOCKS[kind]) if kind in BLOCKS else wanted
        # Turned weights are turned back with what float32 rounds.
        changed = ((after[name] - before[name]).abs() > 1e-6).view(blocks.shape)
        assert not (changed & ~beside).any()
        in_file = wanted if quantised_models.is_quantised(name, wanted) else wanted.bfloat16()
        fresh = quantised_models.as_stored(kind, name, in_file)
        theirs, ours = ((found - wanted)[touched].abs().mean() for found in (fresh, after[name]))
        assert ours <= 1.2 * theirs  # a scale that stays is a little worse than one made for the result
    assert 0 < report.lost < report.changes / 2 and 0.9 < report.share < 1.1


def layer_of(path, rows, columns, layer="MoEExperts"):
    """A layer of the host's with what a file has for "layer."."""
    import comfy.ops

    sizes = (2, columns, rows) if layer == "MoEExperts" else (columns, rows)
    made = getattr(comfy.ops.mixed_precision_ops(compute_dtype=torch.float32), layer)(*sizes, bias=False)
    module = torch.nn.ModuleDict({"layer": made})
    module.load_state_dict(safetensors.torch.load_file(path))
    return made


def stacked(tensors):
    first, *others = tensors
    together = torch.stack([tensor[None].view(torch.uint8) for tensor in (first, *others)])
    return together.view(first.dtype).view(len(others) + 1, *first.shape)


@pytest.mark.parametrize("kind", ["mxfp8", "nvfp4"])
def test_a_weight_that_is_filled_up_to_whole_blocks_has_its_changes_where_the_host_reads_them(comfy, tmp_path, kind):
    rows, columns, precision = 40, 72, comfy.pack_module("nodes.host.precision")
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(3)).bfloat16()
    stored = quantised_models.KINDS[kind].store("layer", weight)
    base, target = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    safetensors.torch.save_file(stored, base)
    places = torch.arange(5, rows * columns, 97, dtype=torch.int32)
    delta = SparseDelta({"layer.weight": SparseEntry(places, torch.full((len(places),), 0.5), (rows, columns))})
    bake(base, target, delta)
    before, after = (precision.dequantised(layer_of(path, rows, columns, "Linear")) for path in (base, target))
    moved = (after - before).view(-1)[places.long()]
    assert before.shape == (rows, columns) and 0.4 < moved.mean() < 0.6 and (moved > 0.2).float().mean() > 0.9
    assert (after != before).sum() < 40 * len(places) / 2
    with pytest.raises(UnsupportedModelError, match="layer.weight.*filled up.*'as the file'"):
        bake(base, tmp_path / "bf16.safetensors", delta, precision="bf16")


@pytest.mark.parametrize("format", ["float8_e4m3fn", "nvfp4", "int8_tensorwise"])
def test_a_bank_of_experts_is_refused_by_name(comfy, tmp_path, format):
    kind = {"float8_e4m3fn": "fp8 scaled", "nvfp4": "nvfp4", "int8_tensorwise": "int8"}[format]
    experts = [quantised_models.KINDS[kind].store("layer", torch.randn(64, 128).bfloat16()) for _ in range(2)]
    bank = {name: stacked(expert[name] for expert in experts) for name in experts[0]}
    base, target = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    safetensors.torch.save_file(bank | {"layer.comfy_quant": experts[0]["layer.comfy_quant"]}, base)
    precision = comfy.pack_module("nodes.host.precision")
    assert precision.dequantised(layer_of(base, 64, 128)).shape == (2, 64, 128)
    entry = SparseEntry(torch.tensor([0], dtype=torch.int32), torch.ones(1), (2, 64, 128))
    delta = SparseDelta({"layer.weight": entry})
    with pytest.raises(UnsupportedModelError, match="'layer.weight' of 'base.safetensors'.*fp16, bf16 or fp32"):
        bake(base, target, delta)


@pytest.mark.parametrize("kind", [*OWN, *TURNED, *GGUF])
def test_in_bf16_all_is_what_the_host_dequantises_with_the_changes(comfy, tmp_path, kind):
    base, target = quantised_models.write(kind, "Flux", tmp_path), tmp_path / "out.safetensors"
    references = quantised_models.references(kind, "Flux")
    delta = changes_of(references)
    report = bake(base, target, delta, STRENGTH, precision="bf16")
    result = safetensors.torch.load_file(target)
    assert result.keys() == references.keys()
    for name, reference in references.items():
        entry = delta.entries.get(f"diffusion_model.{name}")
        wanted = reference if entry is None else applied(reference, entry)
        dtype = result[name].dtype
        assert dtype in (torch.bfloat16, torch.float32)
        torch.testing.assert_close(result[name].float(), wanted.to(dtype).float(), rtol=2**-8, atol=1e-7)
    assert report.share > 0.98
    host_weights(comfy, target, "Flux", references)


@pytest.mark.parametrize("kind", [*TURNED, "GGUF Q8_0"])
def test_what_cannot_hold_single_changes_is_refused_by_name_with_the_way_out(comfy, tmp_path, kind):
    base, target = quantised_models.write(kind, "Flux", tmp_path), tmp_path / "out.safetensors"
    with pytest.raises(UnsupportedModelError, match=f"{base.name}.*bf16 or fp16"):
        bake(base, target, changes_of(quantised_models.bf16_weights("Flux")))
    assert not target.exists()
