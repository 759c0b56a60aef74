"""A delta on the inpainting variant of its model: every loader leaves the first layer's change out, and says so."""

import pytest
import torch

from tests.support.toy_models import (
    assert_same_bits, expected_weights, loaded_weights, sd15_unet_state_dict, unload,
)  # fmt: skip

FIRST, SAID = "diffusion_model.input_blocks.0.0.weight", "left out"


@pytest.fixture
def variant(comfy):
    """The toy model with an input of nine channels, the others' weights the same."""
    import comfy.sd

    weights = sd15_unet_state_dict()
    first = weights["input_blocks.0.0.weight"]
    weights["input_blocks.0.0.weight"] = torch.cat([first, torch.zeros(len(first), 5, 3, 3)], dim=1)
    yield comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": torch.float32})
    unload()


def without_first(pack, delta):
    assert FIRST in delta.entries
    return pack.SparseDelta({name: entry for name, entry in delta.entries.items() if name != FIRST})


@pytest.mark.parametrize("node, inputs", [("SaRAApply", "delta"), ("SaRALoader", "sara_name"),
                                          ("LoraLoaderModelOnly", "lora_name")])  # fmt: skip
def test_all_but_the_first_layer_is_changed_and_the_layer_is_named(
    comfy, pack, variant, delta, saved, node, inputs, monkeypatch, caplog
):
    texts = []
    monkeypatch.setattr(comfy.pack_module("nodes.load"), "show_text", lambda node, text: texts.append(text))
    before = {name: weight.clone() for name, weight in variant.model.state_dict().items()}
    strength = {"strength_model": 1.0} if node.startswith("Lora") else {"strength": 1.0}
    patched = comfy.execute(node, model=variant, **{inputs: delta if inputs == "delta" else saved}, **strength)
    patched = getattr(patched, "outputs", patched)[0]
    assert_same_bits(loaded_weights(patched), expected_weights(before, without_first(pack, delta), 1.0))
    said = texts[0] if node.startswith("SaRA") else caplog.text
    assert SAID in said.lower() and FIRST in said and "9 channels" in said and FIRST in caplog.text


def test_a_plain_model_has_nothing_left_out(comfy, model, delta, monkeypatch):
    texts = []
    monkeypatch.setattr(comfy.pack_module("nodes.load"), "show_text", lambda node, text: texts.append(text))
    patched = comfy.execute("SaRAApply", model=model, delta=delta, strength=1.0).outputs[0]
    assert FIRST in patched.patches and not any(SAID in text.lower() for text in texts)


def test_another_layer_that_does_not_fit_is_refused(comfy, pack, variant, delta):
    bias = delta.entries["diffusion_model.out.2.bias"]._replace(shape=(5,))
    changed = pack.SparseDelta({**delta.entries, "diffusion_model.out.2.bias": bias})
    with pytest.raises(pack.DeltaError, match=r"\[4\].*\[5\]"):
        comfy.execute("SaRAApply", model=variant, delta=changed, strength=1.0)
    assert not variant.patches


def test_the_first_layer_alone_is_refused(comfy, pack, variant, delta):
    with pytest.raises(pack.DeltaError, match=r"9, 3, 3\]"):
        comfy.execute("SaRAApply", model=variant, delta=pack.SparseDelta({FIRST: delta.entries[FIRST]}), strength=1.0)
