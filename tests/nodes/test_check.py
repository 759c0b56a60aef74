"""What SaRA Train says before Run: what its names lead to, how long steps took, and nothing outside its folders."""

import json
import shutil

import pytest

from devtools.comfyui.install import ROOT
from sara_core.errors import SaRAError
from sara_core.names.outline import Outline
from tests.support.toy_training import train

SETTINGS = {"select_by": "density", "density": 4.0, "steps": 400, "batch_size": 8, "gradient_checkpointing": True}


@pytest.fixture
def check(comfy):
    return comfy.pack_module("nodes.host.web.check")


@pytest.fixture
def past(comfy, tmp_path, monkeypatch):
    module = comfy.pack_module("nodes.host.web.past_runs")
    monkeypatch.setattr(module, "_file", lambda: tmp_path / "past.json")
    return module


@pytest.fixture
def named_model(comfy, checkpoint, monkeypatch):
    monkeypatch.setattr(comfy.pack_module("nodes.host.folders"), "model_path", lambda name: checkpoint)
    return "toy.safetensors"


@pytest.fixture
def pictures(comfy):
    folder = comfy.base / "input" / "checked"
    shutil.copytree(ROOT / "demo" / "style", folder)
    yield folder
    shutil.rmtree(folder)


def kinds(answer):
    return [doubt["english"] for doubt in answer["doubts"]]


def test_the_demo_is_foretold(check, past, named_model, pictures):
    dataset = {"folders": "checked | 2", "resolution": 64, "buckets": True, "trigger": "", "caption": ""}
    answer = check._check({"model": named_model, "settings": SETTINGS, "dataset": dataset, "goal": "style"})
    json.dumps(answer, allow_nan=False)
    assert (answer["family"], answer["resolution"], answer["steps"]) == ("SD1.5", 64, 400)
    assert answer["pictures"] == len(list(pictures.glob("*.png"))) and answer["without_caption"] == 0
    assert answer["trained"] == pytest.approx(634_982, rel=0.001)  # what the demo trains
    assert answer["delta"] == pytest.approx(3.19e6, rel=0.01)  # and writes
    assert answer["seconds"] is None and kinds(answer) == []
    assert answer["preset"]["density"]["value"] == 4 and answer["preset"]["resolution"]["value"] == 64


def test_missing_captions_and_large_pictures_of_a_toy_are_told(check, past, named_model, pictures):
    captions = sorted(pictures.glob("*.txt"))
    for caption in captions[:3]:
        caption.unlink()
    asked = {"model": named_model, "settings": SETTINGS, "dataset": {"folders": "checked", "resolution": 512}}
    answer = check._check(asked)
    assert answer["without_caption"] == 3
    said = " ".join(kinds(answer))
    assert "3 pictures without a caption" in said and "blurred" in said and "made for 64 px" in said
    asked["dataset"]["trigger"] = "ohwx"
    assert check._check(asked)["without_caption"] == 0


def test_what_the_page_could_not_find_out_is_left_out(check, past):
    answer = check._check({})
    assert all(answer[name] is None for name in ("family", "pictures", "trained", "memory", "seconds", "preset"))
    assert kinds(answer) == []


@pytest.mark.parametrize("folders", ["..", "/", "../output", "checked\n/etc", "nowhere", "x" * 100_000, 7, None])
def test_no_folder_outside_the_input_folder_is_looked_at(check, past, pictures, folders):
    assert check._check({"dataset": {"folders": folders, "resolution": 64}})["pictures"] is None


@pytest.mark.parametrize("settings", [{"steps": "many"}, {"steps": -1}, {"density": float("nan")}, {"batch_size": []}])
def test_settings_that_are_none_are_refused_in_words(check, settings):
    with pytest.raises(Exception, match="it takes") as refused:
        check._check({"settings": settings})
    assert SaRAError.__name__ in [kind.__name__ for kind in type(refused.value).__mro__]


def test_names_of_another_kind_are_none(check, past):
    answer = check._check({"model": ["x"], "settings": [], "dataset": "x", "goal": {"a": 1}.get("b")})
    assert answer["family"] is None and answer["preset"] is None


def test_the_time_of_a_training_is_known_before_the_next_one(comfy, check, past, model, data, output, monkeypatch):
    options = {"density": 2.0, "batch_size": 2, "snapshot_every": 0}
    train(comfy, model, data, **options, steps=2)
    assert past._known() == []  # too few steps to tell
    train(comfy, model, data, **options, steps=4)
    (known,) = past._known()
    train(comfy, model, data, **options, steps=4)
    assert len(past._known()) == 1  # the newest of its kind
    outline = Outline(known.kind.family, 0, known.kind.trainable, 1)
    monkeypatch.setattr(check, "_model", lambda name: outline)
    side = round(known.kind.area**0.5) * 8
    asked = {"settings": {**SETTINGS, **options, "steps": 100}, "dataset": {"resolution": side}}
    answer = check._check(asked)
    assert answer["seconds"] == pytest.approx(100 * past._known()[0].seconds)
    asked["settings"]["batch_size"] = 3
    assert check._check(asked)["seconds"] is None


@pytest.mark.parametrize("content", ["", "[]", "{}", "[1]", '[{"kind": {}}]', '[{"kind": 1, "seconds": "x"}]', "\0"])
def test_a_damaged_memory_is_an_empty_one(past, content):
    past._file().write_text(content)
    assert past._known() == []


def test_time_goes_by_the_area_of_similar_pictures_only(past):
    def kind(area):
        return past.Kind("SDXL", 7, "cuda:0", area, 1, 1, True)

    past._remember(past.Past(kind(1000), 2.0, 600))
    assert past.expected_of(kind(1500)) == (3.0, 900)
    assert past.expected_of(kind(4000)) == (None, None)
