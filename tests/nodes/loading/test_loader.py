"""SaRA Loader and SaRA Apply in the real host: exact to the bit, and reversible."""

import pytest
import torch

from tests.support.toy_models import assert_same_bits, expected_weights, loaded_weights, unload


def test_strength_zero_gives_the_model_itself(comfy, model, delta, saved):
    patched, loaded, *_ = comfy.execute("SaRALoader", model=model, sara_name=saved, strength=0.0).outputs
    assert patched is model and loaded.nnz == delta.nnz
    assert comfy.execute("SaRAApply", model=model, delta=delta, strength=0.0).outputs[0] is model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strength", [1.0, -0.35])
def test_patched_weights_are_exact_and_every_bit_comes_back(comfy, models, delta, saved, dtype, strength):
    model, base = models(dtype)
    patched = comfy.execute("SaRALoader", model=model, sara_name=saved, strength=strength).outputs[0]
    assert patched is not model and not model.patches
    with torch.inference_mode():
        assert_same_bits(loaded_weights(patched), expected_weights(base, delta, strength))
        unload()
        assert_same_bits(dict(model.model.state_dict()), base)
        # The host keeps patches while it can: loading the plain model again must take them off too.
        loaded_weights(patched)
        assert_same_bits(loaded_weights(model), base)
    unload()


def test_apply_gives_the_same_weights_as_the_loader(comfy, model, delta, saved):
    loaded, from_file, *_ = comfy.execute("SaRALoader", model=model, sara_name=saved, strength=0.5).outputs
    applied = comfy.execute("SaRAApply", model=model, delta=from_file, strength=0.5).outputs[0]
    assert_same_bits(loaded_weights(loaded), loaded_weights(applied))


def test_a_loaded_model_runs_exactly_the_modules_of_the_base(comfy, model, saved):
    before = {name: (type(module), sorted(module.__dict__)) for name, module in model.model.named_modules()}
    loaded_weights(model)
    plain = {name: sorted(module.__dict__) for name, module in model.model.named_modules()}
    patched = comfy.execute("SaRALoader", model=model, sara_name=saved, strength=1.0).outputs[0]
    loaded_weights(patched)
    for name, module in patched.model.named_modules():
        assert type(module) is before[name][0] and sorted(module.__dict__) == plain[name]
        assert not getattr(module, "weight_function", None) and not getattr(module, "bias_function", None)
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_without_a_model_only_the_delta_comes_out(comfy, delta, saved):
    from comfy_execution.graph_utils import ExecutionBlocker

    nothing, loaded, *_ = comfy.execute("SaRALoader", sara_name=saved, strength=1.0).outputs
    assert loaded.nnz == delta.nnz
    assert isinstance(nothing, ExecutionBlocker) and "connect" in nothing.message


def test_the_fingerprint_follows_the_file(comfy, delta):
    path = comfy.base / "models" / "sara" / "changing.safetensors"
    delta.save(path)
    node = comfy.node_class("SaRALoader")
    inputs = {"sara_name": path.name, "strength": 1.0, "model": None}
    first = node.fingerprint_inputs(**inputs)
    assert node.fingerprint_inputs(**inputs) == first
    (delta + delta).save(path, torch.bfloat16)
    assert node.fingerprint_inputs(**inputs) != first


def test_another_strength_does_not_read_the_file_again_but_a_changed_file_is(comfy, monkeypatch, pack, delta, saved):
    reads, read = [], pack.file_v1.read
    monkeypatch.setattr(pack.file_v1, "read", lambda path, *others: reads.append(path) or read(path, *others))
    path = comfy.pack_module("nodes.host.folders").delta_path(saved)
    comfy.execute("SaRALoader", sara_name=saved, strength=1.0)
    reads.clear()
    for strength in (0.5, 0.7):
        comfy.execute("SaRALoader", sara_name=saved, strength=strength)
    assert reads == []
    (2 * delta).save(path)
    again = comfy.execute("SaRALoader", sara_name=saved, strength=1.0).outputs[1]
    assert reads == [path]
    assert all(torch.equal(again.entries[n].values, 2 * entry.values) for n, entry in delta.entries.items())


def test_a_delta_of_the_bare_network_fits_the_model(comfy, model, pack, delta, models):
    bare = {name.removeprefix("diffusion_model."): entry for name, entry in delta.entries.items()}
    patched = comfy.execute("SaRAApply", model=model, delta=pack.SparseDelta(bare), strength=1.0).outputs[0]
    assert_same_bits(loaded_weights(patched), expected_weights(models()[1], delta, 1.0))
