"""The tabs beside Train: each button is given what its work takes, in its order, and lists are filled anew."""

import inspect
from types import SimpleNamespace

import pytest

from sara_webui.tab.tools import Tools
from tests.webui.tab import fake_gradio


@pytest.fixture
def files(monkeypatch, tmp_path):
    fake_gradio.install(monkeypatch)
    from sara_webui.tab.tool_tabs import ToolTabs

    found = SimpleNamespace(deltas={}, checkpoints={})
    found.files = SimpleNamespace(
        networks=lambda: [tmp_path], deltas=lambda: found.deltas, checkpoints=lambda: found.checkpoints,
        checkpoint_folder=lambda: tmp_path, refresh=lambda: None,
    )  # fmt: skip
    found.page = fake_gradio.Part()
    ToolTabs(Tools(found.files)).build(found.page)
    return found


@pytest.mark.parametrize("title", ["Merge", "Bake", "Extract", "Inspect", "Convert"])
def test_each_button_gives_its_work_what_it_takes(files, title):
    work, inputs, outputs = fake_gradio.button(title).handlers["click"]
    taken = list(inspect.signature(getattr(Tools, title.lower())).parameters)[1:]
    assert len(inputs) == len(taken) and len(outputs) == 1
    given = [[], "", "sum", 0.5, "total", 0, "all blocks", "", ""] if title == "Merge" else [""] * len(inputs)
    said = work(*given)
    assert said.startswith("<div class='error'"), "nothing was chosen"


def test_lists_are_filled_with_what_there_is_by_now(files, tmp_path):
    files.deltas["new"] = tmp_path / "new.safetensors"
    pressed = [part for part in fake_gradio.Part.made if part.values == ("Refresh lists",)]
    assert len(pressed) == 5
    found = [part.handlers["click"][0]() for part in pressed]
    assert found[0] == {"choices": ["new"]} and found[1] == [{"choices": []}, {"choices": ["new"]}]


def test_a_page_has_on_loading_what_there_is_by_then(files, tmp_path):
    files.deltas["new"], files.checkpoints["model"] = tmp_path / "new.safetensors", tmp_path / "model.safetensors"
    made = {(part.options["label"], str(given["choices"])) for part, given in fake_gradio.loaded(files.page)}
    assert made == {
        ("Deltas", "['new']"), ("Delta", "['new']"), ("Checkpoint", "['model']"), ("Tuned", "['model']"),
        ("File", "['checkpoints/model']"), ("Base", "['model']"), ("Base", "['', 'model']"),
    }  # fmt: skip
