"""A delta file in the stock Load LoRA, on quantised weights: it says where the host rounds, and where it does not."""

import logging

import pytest
import torch

from tests.support import quantised_models
from tests.support.quantised_effects import delta_of, dense, is_whole, layer_outputs, quantised_layers, share_and_noise
from tests.support.toy_models import unload

LAYER = "diffusion_model.single_blocks.0.linear2"


@pytest.fixture
def pack(comfy):
    yield comfy.pack_module("sara_core.delta")
    unload()


@pytest.fixture
def with_delta(comfy, pack):
    """MODEL → MODEL with the delta through the stock loader."""
    delta = delta_of(
        pack, of=lambda name, weight: f"diffusion_model.{name}".removesuffix(".weight") in quantised_layers()
    )
    delta.save(comfy.base / "models" / "sara" / "quantised.safetensors")

    def load(model, strength=1.0):
        name = "quantised.safetensors"
        return comfy.execute("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=strength).outputs[0]

    return load, delta


def told(caplog):
    return [
        record.message for record in caplog.records if "rounds the weights that Load LoRA changes" in record.message
    ]


@pytest.mark.parametrize("kind", ["fp8 e4m3", "fp8 scaled by 1", "mxfp8", "nvfp4", "int8"])
def test_the_log_says_once_that_the_host_rounds_and_what_does_not(comfy, with_delta, tmp_path, caplog, kind):
    load, _ = with_delta
    model = quantised_models.model(kind, "Flux", tmp_path)
    with caplog.at_level(logging.WARNING):
        patched = load(model)
        quantised_models.output(patched, "Flux")
        unload()
        quantised_models.output(patched, "Flux")
    assert len(told(caplog)) == 1 and "Use SaRA Loader instead" in told(caplog)[0]
    assert kind.removesuffix(" by 1") in told(caplog)[0]


@pytest.mark.parametrize("kind", ["bf16", "GGUF Q8_0", "GGUF Q4_0"])
def test_nothing_is_said_and_nothing_lost_where_the_host_does_not_round(comfy, with_delta, tmp_path, caplog, kind):
    load, delta = with_delta
    model = quantised_models.model(kind, "Flux", tmp_path)
    before = layer_outputs(model, [LAYER])[LAYER]
    with caplog.at_level(logging.WARNING):
        after = layer_outputs(load(model), [LAYER])[LAYER]
    change = dense(delta.entries[f"{LAYER}.weight"])
    wanted = torch.randn(64, change.shape[1], generator=torch.Generator().manual_seed(5)) @ change.T
    assert is_whole(after - before, wanted) and not told(caplog)


def test_the_stock_loader_does_lose_what_the_log_says(with_delta, tmp_path):
    load, delta = with_delta
    model = quantised_models.model("nvfp4", "Flux", tmp_path)
    before = layer_outputs(model, [LAYER])[LAYER]
    change = dense(delta.entries[f"{LAYER}.weight"])
    wanted = torch.randn(64, change.shape[1], generator=torch.Generator().manual_seed(5)) @ change.T
    _, noise = share_and_noise(layer_outputs(load(model), [LAYER])[LAYER] - before, wanted)
    assert noise > 0.5


def test_a_model_that_is_streamed_is_found_among_the_loaded_ones(comfy, with_delta, tmp_path, caplog, monkeypatch):
    """With dynamic memory the host asks for a patched weight while it computes, without its patcher."""
    import comfy.model_management as management

    load, _ = with_delta
    patched = load(quantised_models.model("nvfp4", "Flux", tmp_path))
    monkeypatch.setattr(patched, "is_dynamic", lambda: True, raising=False)
    monkeypatch.setattr(management, "current_loaded_models", [type("Loaded", (), {"model": patched})()])
    patches = patched.patches[f"{LAYER}.weight"]
    weight = torch.zeros(patches[0][1].weights[1])
    moved = type(patches[0][1])(patches[0][1].loaded_keys, patches[0][1].weights)
    with caplog.at_level(logging.WARNING):
        moved.calculate_weight(weight, f"{LAYER}.weight", 1.0, 1.0, None, None)
        moved.calculate_weight(weight, f"{LAYER}.weight", 1.0, 1.0, None, None)
    assert len(told(caplog)) == 1
    monkeypatch.setattr(patched, "is_dynamic", lambda: False)
    patched.patches_uuid = None
    moved.calculate_weight(weight, f"{LAYER}.weight", 1.0, 1.0, None, None)
    assert len(told(caplog)) == 1


def test_a_quantised_embedding_takes_the_change_in_full(comfy, pack):
    from comfy import quant_ops

    adapter = comfy.pack_module("nodes.host.patching").SaRAAdapter
    packed, parameters = quant_ops.get_layout_class("TensorWiseINT8Layout").quantize(torch.randn(40, 64))
    weight = quant_ops.QuantizedTensor(packed, "TensorWiseINT8Layout", parameters)
    entry = pack.SparseEntry(torch.tensor([3, 70], dtype=torch.int32), torch.tensor([0.5, -2.0]), (40, 64))
    result = adapter.of(entry, set()).calculate_weight(weight, "token.weight", 1.0, 1.0, None, None)
    assert torch.allclose(result - weight.dequantize(), dense(entry), atol=1e-6)
