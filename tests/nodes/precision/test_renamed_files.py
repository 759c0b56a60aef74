"""Files whose names ComfyUI changes as it loads them, query, key and value into one weight: trained, applied, baked."""

import shutil

import pytest
import safetensors.torch
import torch

from sara_core.models.bake import bake
from sara_core.names.z_image import ZImageNames
from tests.nodes.precision.test_apply import applied
from tests.nodes.precision.test_bake_precisions import changes_of, host_weights
from tests.nodes.precision.test_train_node import inputs
from tests.support import quantised_models
from tests.support.quantised_effects import share_and_noise
from tests.support.quantised_models import KINDS
from tests.support.toy_models import unload
from tests.support.toy_training import train

FAMILY, STRENGTH = "Z-Image", 0.7
QKV = "diffusion_model.layers.0.attention.qkv.weight"


def written(kind, folder):
    """A file of Z-Image with diffusers' names: query, key and value are three weights in it, each quantised alone."""
    made, weights = KINDS[kind], quantised_models.bf16_weights(FAMILY)
    names, stored = ZImageNames({name: tuple(weight.shape) for name, weight in weights.items()}), {}
    for name, weight in weights.items():
        for theirs, part in names.to_diffusers(name).items():
            rows = weight.chunk(part.whole)[part.first].clone()
            if made.store and quantised_models.is_quantised(theirs, rows):
                stored |= made.store(theirs.removesuffix(".weight"), rows)
            else:
                stored[theirs] = rows.to(made.everything or rows.dtype)
    path = folder / f"{kind}-{FAMILY}.safetensors"
    safetensors.torch.save_file(stored, path)
    return path


def as_in_the_model(stored):
    """Weights with diffusers' names, put together under the model's names."""
    shapes = {name: tuple(weight.shape) for name, weight in quantised_models.bf16_weights(FAMILY).items()}
    names = ZImageNames(shapes)
    return {name: torch.cat([stored[theirs] for theirs in names.to_diffusers(name)]) for name in shapes}


@pytest.mark.parametrize("kind", ["fp8 e4m3"])
def test_what_is_trained_on_such_a_file_is_baked_into_it(comfy, tmp_path, monkeypatch, kind):
    path = written(kind, tmp_path)
    with torch.inference_mode():
        model = quantised_models.load(path, FAMILY)
        delta, _ = train(comfy, model, inputs(FAMILY), learning_rate=0.02, density=2.0)
        expected = quantised_models.output(applied(comfy, model, delta, 1.0), FAMILY)
        before = quantised_models.output(model, FAMILY)
        unload()
    entry = delta.entries[QKV]
    assert entry.shape == (768, 256) and entry.indices.max() > 512 * 256
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    shutil.copy(path, checkpoints / "base.safetensors")
    folders = comfy.folder_paths.folder_names_and_paths
    monkeypatch.setitem(folders, "checkpoints", ([str(checkpoints)], {".safetensors"}))
    name, = comfy.execute(
        "SaRABake", ckpt_name="base.safetensors", delta=delta, strength=1.0, filename_prefix=f"checkpoints/{kind}",
        precision="bf16",
    ).outputs  # fmt: skip
    baked = quantised_models.output(quantised_models.load(comfy.base / "output" / name, FAMILY), FAMILY)
    unload()
    share, noise = share_and_noise(baked - before, expected - before)
    assert abs(share - 1) < 0.02 and noise < 0.1
    in_place = tmp_path / "own" / path.name
    in_place.parent.mkdir()
    report = bake(path, in_place, delta)
    assert not report.left_out
    assert list(safetensors.torch.load_file(in_place)) == list(safetensors.torch.load_file(path))
    own = quantised_models.output(quantised_models.load(in_place, FAMILY), FAMILY)
    assert share_and_noise(own - before, expected - before)[0] > 0.8


@pytest.mark.parametrize("kind", ["fp8 scaled", "nvfp4", "int8"])
def test_a_file_whose_scales_the_host_loses_is_baked_to_one_that_it_loads(comfy, tmp_path, kind):
    """ComfyUI gives the fused weights no scales, and says so in its log at most: that MODEL is good for nothing."""
    base, target = written(kind, tmp_path), tmp_path / "baked.safetensors"
    weights = quantised_models.bf16_weights(FAMILY)
    delta = changes_of({name: weights[name] for name in ("layers.0.attention.qkv.weight", "cap_embedder.1.bias")})
    bake(base, target, delta, STRENGTH, precision="bf16")
    apart = ZImageNames({name: tuple(weight.shape) for name, weight in weights.items()})
    parts = {
        theirs: quantised_models.as_stored(kind, theirs, weights[name].chunk(part.whole)[part.first])
        for name in weights for theirs, part in apart.to_diffusers(name).items()
    }  # fmt: skip
    expected = as_in_the_model(parts)
    for name, (indices, values, _) in delta.entries.items():
        expected[name.removeprefix("diffusion_model.")].view(-1)[indices.long()] += STRENGTH * values
    found = host_weights(comfy, target, FAMILY, expected)
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted, rtol=2**-7, atol=1e-4, msg=name)
