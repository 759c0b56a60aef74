"""SaRA Loader with several deltas: as many loaders in a row; what it says without one; and the words it hands on."""

import pytest
import torch

from tests.support import text_encoders
from tests.support.toy_models import assert_same_bits, loaded_weights, unload

TRIGGER = "modelspec.trigger_phrase"


@pytest.fixture
def rows(comfy):
    return comfy.pack_module("nodes.delta_rows")


@pytest.fixture
def names(comfy, pack, delta):
    """Three files that change the same weights differently: a, b, and "c = d"."""
    for file, factor, said in (("a", 1.0, "inkstyle"), ("b", -0.75, " wet\n paper "), ("c = d", 0.3, "inkstyle")):
        scaled = pack.SparseDelta((factor * delta).entries, {**delta.metadata, TRIGGER: said})
        scaled.save(comfy.base / "models" / "sara" / f"{file}.safetensors")
    return ["a.safetensors", "b.safetensors", "c = d.safetensors"]


def load(comfy, name, model, strength=1.0, **others):
    return comfy.execute("SaRALoader", model=model, sara_name=name, strength=strength, **others).outputs


def weights_of(model):
    try:
        return loaded_weights(model)
    finally:
        unload()


def test_several_deltas_are_as_many_loaders_in_a_row_to_the_bit(comfy, model, names):
    patched, first, _, _ = load(comfy, names[0], model, 0.7, more=f"{names[1]} = 0.4\n\n{names[2]} = -1.5\n")
    chained = model
    for name, strength in zip(names, (0.7, 0.4, -1.5)):
        chained = load(comfy, name, chained, strength)[0]
    alone = weights_of(load(comfy, names[0], model, 0.7)[0])
    expected = weights_of(chained)
    assert_same_bits(weights_of(patched), expected)
    assert any(not torch.equal(expected[name], alone[name]) for name in alone)  # the others did something
    assert first.metadata[TRIGGER] == "inkstyle"


def test_a_row_that_is_off_does_nothing_and_its_file_may_be_gone(comfy, model, names):
    patched, _, _, trigger = load(comfy, names[0], model, more=f"{names[1]} = 0.4, off\ngone.safetensors = 1, off")
    assert_same_bits(weights_of(patched), weights_of(load(comfy, names[0], model)[0]))
    assert trigger == "inkstyle"


def test_each_text_encoder_gets_the_strength_of_its_row(comfy, pack):
    model, clip = text_encoders.loaded(text_encoders.checkpoint("SD1.5"))
    name, weight = next((n, w) for n, w in clip.cond_stage_model.state_dict().items() if n.endswith("fc1.weight"))
    entry = pack.SparseEntry(torch.tensor([3], dtype=torch.int32), torch.tensor([0.5]), tuple(weight.shape))
    pack.SparseDelta({f"text_encoders.{name}": entry}).save(comfy.base / "models" / "sara" / "words.safetensors")
    file = "words.safetensors"
    both = load(comfy, file, None, 1.0, clip=clip, strength_clip=0.5, more=f"{file} = 1, -0.25")[2]
    one = load(comfy, file, None, 1.0, clip=load(comfy, file, None, 1.0, clip=clip, strength_clip=0.5)[2],
               strength_clip=-0.25)[2]  # fmt: skip
    assert_same_bits(text_encoders.text_weights(both), text_encoders.text_weights(one))
    unload()


def test_the_trigger_words_are_those_of_all_deltas_that_do_something(comfy, model, names):
    more = f"{names[1]} = 0.5\n{names[2]}"
    assert load(comfy, names[0], model, more=more)[3] == "inkstyle, wet paper"
    assert load(comfy, names[0], model, 0.0, more=f"{names[1]} = 0.5")[3] == "wet paper"
    assert load(comfy, names[0], model, 0.0)[3] == ""


def test_the_fingerprint_follows_every_file_that_is_on(comfy, names):
    node = comfy.node_class("SaRALoader")
    before = node.fingerprint_inputs(sara_name=names[0], more=names[1])
    path = comfy.base / "models" / "sara" / names[1]
    path.write_bytes(path.read_bytes() + b" ")
    assert node.fingerprint_inputs(sara_name=names[0], more=names[1]) != before
    without = node.fingerprint_inputs(sara_name=names[0])
    assert node.fingerprint_inputs(sara_name=names[0], more=f"{names[1]} = 1, off") == without


@pytest.mark.parametrize(
    "line, expected",
    [
        ("a.safetensors", ("a.safetensors", 1.0, 1.0, True)),
        ("a = b.safetensors", ("a = b.safetensors", 1.0, 1.0, True)),
        ("a = b.safetensors = .5", ("a = b.safetensors", 0.5, 0.5, True)),
        ("unsaved/run_00001.safetensors=-2, 0.25", ("unsaved/run_00001.safetensors", -2.0, 0.25, True)),
        ("a.safetensors = 0.8, off", ("a.safetensors", 0.8, 0.8, False)),
        ("a.safetensors = 0.8, 0, off", ("a.safetensors", 0.8, 0.0, False)),
        ("a.safetensors = off", ("a.safetensors", 1.0, 1.0, False)),
    ],
)
def test_lines_are_read(rows, line, expected):
    assert rows.parse_rows(f"\n  {line}  \n") == [rows.DeltaRow(*expected)]


@pytest.mark.parametrize(
    "line, said",
    [
        ("style", "an equals sign"),
        ("a.safetensors = strong", "strong"),
        ("a.safetensors = 0,5", "0.5"),
        ("a.safetensors = 1, 2, 3", "an equals sign"),
        ("a.safetensors = nan", "nan"),
        ("a.safetensors = 101", "-100 to 100"),
        ("= 1", "an equals sign"),
    ],
)
def test_lines_that_cannot_be_understood_are_refused_before_the_run(comfy, names, line, said):
    refused = comfy.node_class("SaRALoader").validate_inputs(sara_name=names[0], more=line)
    assert isinstance(refused, str) and said in refused and "'style_00001_.safetensors = 0.8'" in refused


def test_a_further_delta_that_is_gone_is_named_before_the_run(comfy, names):
    node = comfy.node_class("SaRALoader")
    assert "'gone.safetensors'" in node.validate_inputs(sara_name=names[0], more="gone.safetensors = 1")
    assert "'../a.safetensors'" in node.validate_inputs(sara_name=names[0], more="../a.safetensors = 1")
    assert node.validate_inputs(sara_name=names[0], more=f"{names[1]} = 1") is True


def test_without_a_delta_the_menu_offers_a_line_that_is_refused_in_words(comfy, monkeypatch):
    load = comfy.pack_module("nodes.load")
    monkeypatch.setattr(load.folders, "delta_names", lambda: [])
    node = comfy.node_class("SaRALoader")
    options = node.INPUT_TYPES()["required"]["sara_name"][1]["options"]
    assert options == ["(no delta yet)"]
    said = node.validate_inputs(sara_name=options[0], strength=1.0)
    assert said.startswith("You have no delta yet: train one") and "models/sara" in said


def test_what_nobody_saved_is_offered_last(comfy, delta):
    folders = comfy.pack_module("nodes.host.folders")
    place = comfy.base / "output" / "sara"
    (place / "unsaved").mkdir(exist_ok=True)
    others = ["stopped_run_00001.safetensors", "unsaved/run_00002.safetensors", "zebra.safetensors"]
    for name in others:
        delta.save(place / name)
    names = [name.replace("\\", "/") for name in folders.delta_names() if name.replace("\\", "/") in others]
    assert names == [others[2], others[1], others[0]]
    assert [folders.kind_of(name) for name in names] == ["saved", "unsaved", "stopped"]
    assert folders.kind_of("stopped_trains.safetensors") == "saved"
    for name in others:
        (place / name).unlink()
