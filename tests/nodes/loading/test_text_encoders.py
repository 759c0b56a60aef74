"""A delta's part for text encoders in the real host: on the CLIP to the bit, and left out in words without one."""

import pytest
import torch

from tests.support import text_encoders
from tests.support.toy_models import assert_same_bits, changed, delta_entries, expected_weights, loaded_weights, unload

FIRST = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
FAMILIES = ["SD1.5", "SDXL"]


@pytest.fixture(scope="module")
def pairs(comfy):
    """MODEL and CLIP of a family, from one checkpoint, made once."""
    made = {}

    def pair(family):
        if family not in made:
            made[family] = text_encoders.loaded(text_encoders.checkpoint(family))
        return made[family]

    yield pair
    unload()


@pytest.fixture
def delta_of(pack, pairs):
    """A delta of every Linear of the family's text encoders and of some of the model's weights."""

    def delta(family, of_model=True):
        model, clip = pairs(family)
        text = {f"text_encoders.{name}": weight for name, weight in clip.cond_stage_model.state_dict().items()
                if ".layers." in name}  # fmt: skip
        own = {name: weight for name, weight in model.model.state_dict().items() if name.endswith("to_q.weight")}
        entries = delta_entries({**text, **(own if of_model else {})})
        entries = {name: pack.SparseEntry(*entry) for name, entry in entries.items()}
        return pack.SparseDelta(entries, {"sara.family": family})

    return delta


def expected_text(clip, delta, strength):
    base = clip.cond_stage_model.state_dict()
    return {name: changed(weight, delta.entries[f"text_encoders.{name}"], strength)
            if f"text_encoders.{name}" in delta.entries else weight for name, weight in base.items()}  # fmt: skip


def told(comfy, monkeypatch):
    """What is shown on nodes from now on."""
    shown = []
    monkeypatch.setattr(comfy.pack_module("nodes.load"), "show_text", lambda node, text: shown.append(text))
    return shown


@pytest.mark.parametrize("family", FAMILIES)
def test_model_and_clip_are_exact_with_strengths_of_their_own_and_every_bit_comes_back(comfy, pairs, delta_of, family):
    model, clip = pairs(family)
    delta = delta_of(family)
    base, base_text = loaded_weights(model), text_encoders.text_weights(clip)
    expected = expected_text(clip, delta, -0.35)
    patched, patched_clip = comfy.execute(
        "SaRAApply", model=model, delta=delta, strength=0.8, clip=clip, strength_clip=-0.35
    ).outputs
    assert_same_bits(loaded_weights(patched), expected_weights(base, delta, 0.8))
    assert_same_bits(text_encoders.text_weights(patched_clip), expected)
    assert any(not torch.equal(expected[name], weight) for name, weight in base_text.items())
    unload()
    assert_same_bits(text_encoders.text_weights(clip), base_text)
    unload()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stock_loader_gives_the_same_bits_of_weights(comfy, pairs, delta_of, family):
    """It asks for weights only, so that biases of text encoders do not arrive there."""
    model, clip = pairs(family)
    delta = delta_of(family)
    kept = {name: entry for name, entry in delta.entries.items() if name.endswith(".weight")}
    path = comfy.base / "models" / "loras" / "with_text.safetensors"
    path.parent.mkdir(exist_ok=True)
    type(delta)(kept, delta.metadata).save(path)
    expected = expected_text(clip, type(delta)(kept), 0.7)
    _, stock = comfy.execute(
        "LoraLoader", model=model, clip=clip, lora_name=path.name, strength_model=1.0, strength_clip=0.7
    ).outputs
    assert_same_bits(text_encoders.text_weights(stock), expected)
    unload()


def test_the_loader_gives_what_apply_gives(comfy, pairs, delta_of):
    model, clip = pairs("SD1.5")
    delta = delta_of("SD1.5")
    expected = expected_text(clip, delta, 1.0)
    delta.save(comfy.base / "models" / "sara" / "text.safetensors")
    outputs = comfy.execute("SaRALoader", model=model, sara_name="text.safetensors", strength=1.0, clip=clip).outputs
    assert outputs[1].nnz == delta.nnz
    assert_same_bits(text_encoders.text_weights(outputs[2]), expected)
    unload()


def test_a_clip_without_a_model_is_changed_too(comfy, pairs, delta_of):
    clip = pairs("SD1.5")[1]
    delta_of("SD1.5").save(comfy.base / "models" / "sara" / "text.safetensors")
    model, _, patched, *_ = comfy.execute("SaRALoader", sara_name="text.safetensors", strength=1.0, clip=clip).outputs
    assert "connect" in model.message and patched.patcher.patches


def test_without_a_clip_the_node_says_what_is_left_out(comfy, monkeypatch, pairs, delta_of):
    model, _ = pairs("SDXL")
    shown = told(comfy, monkeypatch)
    patched, clip = comfy.execute("SaRAApply", model=model, delta=delta_of("SDXL"), strength=1.0).outputs
    assert patched.patches and "connect" in clip.message
    assert len(shown) == 1 and "CLIP-L and CLIP-G" in shown[0] and "no CLIP is connected" in shown[0]


def test_a_delta_of_text_encoders_alone_leaves_the_model_itself(comfy, monkeypatch, pairs, delta_of):
    model, clip = pairs("SD1.5")
    shown = told(comfy, monkeypatch)
    patched, patched_clip = comfy.execute(
        "SaRAApply", model=model, delta=delta_of("SD1.5", of_model=False), strength=1.0, clip=clip
    ).outputs
    assert patched is model and patched_clip.patcher.patches and not shown


def test_strength_zero_gives_the_clip_itself(comfy, pairs, delta_of):
    model, clip = pairs("SD1.5")
    outputs = comfy.execute(
        "SaRAApply", model=model, delta=delta_of("SD1.5"), strength=1.0, clip=clip, strength_clip=0.0
    ).outputs
    assert outputs[1] is clip


def test_an_encoder_that_the_clip_lacks_is_left_out_in_words(comfy, monkeypatch, pack, pairs, delta_of):
    model, clip = pairs("SD1.5")
    shown = told(comfy, monkeypatch)
    delta = delta_of("SD1.5")
    more = pack.SparseDelta({**delta.entries, FIRST.replace("clip_l", "t5xxl"): delta.entries[FIRST]})
    patched = comfy.execute("SaRAApply", model=model, delta=more, strength=1.0, clip=clip).outputs[1]
    assert patched.patcher.patches
    assert shown == ["Left out: the change of T5-XXL, which this CLIP does not have."]


def test_another_encoder_of_the_name_is_refused(comfy, pack, pairs, delta_of):
    model, clip = pairs("SD1.5")
    delta = delta_of("SD1.5")
    longer = pack.SparseDelta({**delta.entries, FIRST.replace("layers.0", "layers.30"): delta.entries[FIRST]})
    with pytest.raises(pack.DeltaError, match="This CLIP's CLIP-L lacks 1 of the weights"):
        comfy.execute("SaRAApply", model=model, delta=longer, strength=1.0, clip=clip)
    wider = pack.SparseDelta({FIRST: delta.entries[FIRST]._replace(shape=(96, 65))})
    with pytest.raises(pack.DeltaError, match="shape"):
        comfy.execute("SaRAApply", model=model, delta=wider, strength=1.0, clip=clip)


def test_a_clip_for_a_delta_without_text_encoders_passes_through(comfy, monkeypatch, pairs, delta_of, pack):
    model, clip = pairs("SD1.5")
    shown = told(comfy, monkeypatch)
    entries = {name: entry for name, entry in delta_of("SD1.5").entries.items() if name.startswith("diffusion_model.")}
    outputs = comfy.execute("SaRAApply", model=model, delta=pack.SparseDelta(entries), strength=1.0, clip=clip).outputs
    assert outputs[1] is clip and not shown


def test_a_prompt_of_before_runs_unchanged(comfy, model, saved):
    """Without the inputs that came later, and with the outputs where they were."""
    patched, loaded, *_ = comfy.execute("SaRALoader", model=model, sara_name=saved, strength=0.5).outputs
    assert patched.patches and loaded.nnz
    assert comfy.execute("SaRAApply", model=model, delta=loaded, strength=0.5).outputs[0].patches
