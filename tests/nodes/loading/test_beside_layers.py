"""Parameters beside layers (Wan's modulation): ComfyUI takes patches for them that it never applies, which is said."""

import pytest
import torch

from tests.support.family_models import FAMILIES
from tests.support.toy_models import assert_same_bits, expected_weights, loaded_weights, unload

MODULATIONS = {"diffusion_model.blocks.0.modulation", "diffusion_model.head.modulation"}
SAID = "beside layers"
LAYERS = {
    f"diffusion_model.{name}" for name in ("blocks.0.ffn.0.bias", "blocks.0.norm3.weight", "head.head.weight")
}


@pytest.fixture
def wan(comfy):
    yield FAMILIES["Wan 2.1"].model()
    unload()


def delta_of(pack, model, names):
    weights = model.model.state_dict()
    entries = {name: pack.SparseEntry(torch.tensor([0, 3], dtype=torch.int32), torch.tensor([0.5, -0.25]),
                                      tuple(weights[name].shape)) for name in names}  # fmt: skip
    return pack.SparseDelta(entries)


@pytest.fixture
def texts(comfy, monkeypatch):
    texts = []
    monkeypatch.setattr(comfy.pack_module("nodes.load"), "show_text", lambda node, text: texts.append(text))
    return texts


def test_what_comfyui_does_not_change_is_named_and_the_rest_is_changed(comfy, pack, wan, texts, caplog):
    before = {name: weight.clone() for name, weight in wan.model.state_dict().items()}
    delta = delta_of(pack, wan, MODULATIONS | LAYERS)
    patched, _ = comfy.execute("SaRAApply", model=wan, delta=delta, strength=1.0).outputs
    assert_same_bits(loaded_weights(patched), expected_weights(before, delta_of(pack, wan, LAYERS), 1.0))
    assert SAID in texts[0] and "SaRA Bake" in texts[0]
    assert all(name in texts[0] and name in caplog.text for name in MODULATIONS)
    assert not any(name in texts[0] for name in LAYERS)


def test_of_layers_alone_nothing_is_said(comfy, pack, wan, texts):
    comfy.execute("SaRAApply", model=wan, delta=delta_of(pack, wan, LAYERS), strength=1.0)
    assert not any(SAID in text for text in texts)
