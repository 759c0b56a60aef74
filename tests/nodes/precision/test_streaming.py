"""Quantised models that do not fit on the GPU: the host casts, dequantises and patches each weight as it is used."""

import pytest
import torch

from tests.nodes.precision.test_apply import applied
from tests.nodes.precision.test_train_gradients import host_loss
from tests.nodes.precision.test_train_node import KEY, inputs, loaded, training_model
from tests.nodes.training.test_isolation import assert_deltas_agree, load_in_low_vram
from tests.support import quantised_models
from tests.support.quantised_effects import delta_of
from tests.support.toy_models import unload
from tests.support.toy_training import train


@pytest.fixture
def model(tmp_path, kind):
    with torch.inference_mode():
        yield loaded(quantised_models.model(kind, "Flux", tmp_path))
        unload()


def is_streamed(model):
    return any(getattr(part, "comfy_cast_weights", False) for part in model.model.modules())


@pytest.mark.parametrize(
    "kind, carries_delta",
    [("fp8 e4m3", False), ("fp8 scaled", True), ("nvfp4", False), ("int8", True), ("GGUF Q4_0", True)],
)
def test_training_is_the_same_as_with_all_of_it_loaded(comfy, model, monkeypatch, kind, carries_delta):
    before, delta = quantised_models.output(model, "Flux"), delta_of(comfy.pack_module("sara_core.delta"))
    with torch.inference_mode():
        carrying = applied(comfy, model, delta, 0.2) if carries_delta else model
        expected, losses = train(comfy, carrying, inputs("Flux"), adjust_at="")
        load_in_low_vram(monkeypatch)
        found, streamed_losses = train(comfy, carrying, inputs("Flux"), adjust_at="")
        assert is_streamed(model)
        monkeypatch.undo()
        unload()
        assert torch.equal(quantised_models.output(model, "Flux"), before)
    assert streamed_losses["loss"] == pytest.approx(losses["loss"], rel=1e-5)
    assert_deltas_agree(expected, found)


@pytest.mark.parametrize("kind", ["fp8 scaled", "nvfp4", "GGUF Q4_0"])
def test_it_computes_with_a_lora_as_the_host_does_while_it_streams(comfy, model, monkeypatch, kind):
    """The host adds it to the dequantised copy, which it does not round anew as where all of the model is loaded."""
    import comfy.model_management as management

    layout = quantised_models.LAYOUTS["Flux"]
    with torch.inference_mode():
        without = host_loss(comfy, model, layout)
        change = 0.1 * torch.randn(model.model.get_submodule(KEY.removesuffix(".weight")).weight.shape)
        carrying = model.clone()
        carrying.add_patches({KEY: ("diff", (change,))}, 1.0)
        load_in_low_vram(monkeypatch)
        management.load_models_gpu([carrying])
    with torch.inference_mode(False), torch.no_grad():
        expected = host_loss(comfy, carrying, layout)
        with training_model(comfy, carrying, "Flux") as training:
            assert torch.allclose(host_loss(comfy, training.patcher, layout), expected, rtol=1e-6)
    assert is_streamed(model) and not torch.allclose(without, expected, rtol=1e-4)
