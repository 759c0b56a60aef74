"""SaRA Convert on files of other people: what it says of them, and its two readings of their numbers."""

import pytest
import torch

from tests.support.toy_adapters import LAYER, ROWS, base_file, factors, numbers, of_module, saved


@pytest.fixture
def files(comfy):
    """Names of a model and of an OFT for it, which ComfyUI would not rescale, with leftovers of a training."""
    models, loras = (comfy.base / "models" / kind for kind in ("diffusion_models", "loras"))
    for folder in (models, loras):
        folder.mkdir(parents=True, exist_ok=True)
    base_file(models).replace(models / "toy.safetensors")
    tensors = of_module(LAYER, {".oft_blocks": numbers(2, 4, 4), ".rescale": 1 + 0.1 * numbers(ROWS, 1)})
    beside = {"iteration": torch.tensor(4)} | of_module("lora_te_text_model_0", factors())
    saved(loras / "toy oft.safetensors", tensors | beside)
    comfy.folder_paths.filename_list_cache.clear()
    return {"file_name": "toy oft.safetensors", "base_name": "toy.safetensors", "density": 50.0, "to": "none"}


def test_the_node_says_what_was_left_out_and_what_comfyui_would_show(comfy, files):
    delta, report = comfy.execute("SaRAConvert", **files).outputs
    assert "As it was trained. ComfyUI itself shows another change" in report and "the rescaling of an OFT" in report
    assert "1 modules of the text encoder (lora_te_text_model_0)" in report and "(iteration)" in report
    other, report = comfy.execute("SaRAConvert", **files, reading="comfyui").outputs
    assert "As ComfyUI shows it." in report
    name = f"diffusion_model.{LAYER}.weight"
    assert not torch.equal(delta.entries[name].values, other.entries[name].values)


def test_trained_is_the_default_and_both_readings_are_offered(comfy):
    kind, options = comfy.node_class("SaRAConvert").INPUT_TYPES()["optional"]["reading"]
    assert options["default"] == "trained" and options["options"] == ["trained", "comfyui"], kind
