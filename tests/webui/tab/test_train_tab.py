"""The tab Train: what its inputs mean, what its buttons do, and what is shown."""

import html
from pathlib import Path

import pytest
from PIL import Image

from sara_core.names.outline import Outline
from sara_webui.tab.view import sentence
from sara_webui.training.progress import Progress
from sara_webui.training.hosts import NOTHING
from sara_webui.training.runner import Runner
from sara_webui.training.settings import ALL, read_values
from tests.webui.tab import fake_gradio
from tests.webui.training.fake_host import FakeHost


@pytest.fixture
def tab(tmp_path, monkeypatch):
    folder = tmp_path / "pictures" / "cats"
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64), (80, 40, 200)).save(folder / "a.png")
    fake_gradio.install(monkeypatch)
    from sara_webui.tab import training

    monkeypatch.setattr(training, "SECONDS_BETWEEN_LOOKS", 0.01)
    made = training.TrainTab(Runner(FakeHost(tmp_path)), may_use_paths=False, chosen_checkpoint=lambda: None)
    page = fake_gradio.Part()
    made.build(page)
    made.page = page
    return made


def values(tab, **changes):
    """As the page sends them: whole numbers as floats, too, and nothing for what was emptied."""
    short = {"name": "style", "trigger": "x", "resolution": 64.0, "steps": 3.0, "density": 0.2, "seed": None, **changes}
    return [short.get(name, ALL[name].default) for name in tab.inputs]


def on_loading(tab, part):
    """What loading the page gives this part."""
    found, = [given for one, given in fake_gradio.loaded(tab.page) if one is part]
    return found


def test_every_setting_has_an_input_of_its_kind(tab):
    assert tab.inputs.keys() == ALL.keys()
    kinds = {name: type(part).__name__ for name, part in tab.inputs.items()}
    assert kinds["optimizer"] == "Dropdown" and kinds["flip"] == "Checkbox"
    assert kinds["density"] == "Number" and kinds["trigger"] == "Textbox"
    assert all(part.options["info"] == ALL[name].help for name, part in tab.inputs.items())


def test_a_training_is_shown_to_its_end_with_its_pictures(tab):
    said = fake_gradio.press("Start", "cats", "", "none: a new run", *values(tab, prompts="a cat", sample_every=1))
    last, pictures = said[-1]
    assert "3 steps" in last and "<svg" in last and "class='error'" not in last
    drawn = next(found for _, found in reversed(said) if isinstance(found, list))
    assert [title for _, title in drawn] == ["step 3", "step 2", "step 1", "step 0"]
    assert fake_gradio.press("Show the training")[-1][0] == last


def test_a_page_says_on_loading_what_is_so(tab):
    assert on_loading(tab, tab.status) == sentence(NOTHING) and on_loading(tab, tab.pictures) == []
    progress = Progress("begun elsewhere", read_values({"steps": 10}))
    progress.tell(phase="training", step=4, message="Training")
    tab.runner.last = progress
    shown = on_loading(tab, tab.status)
    assert "begun elsewhere: Training" in shown and "step 4 of 10" in shown
    assert "Show the training" in shown, "for what is shown does not go on by itself"
    progress.tell(phase="finished", message="Done.")
    shown = on_loading(tab, tab.status)
    assert "begun elsewhere: Done." in shown and "Show the training" not in shown


def test_pictures_that_were_deleted_meanwhile_are_left_out(tab):
    fake_gradio.press("Start", "cats", "", "none: a new run", *values(tab, prompts="a cat", sample_every=3))
    tab.runner.last.drawn[0][0].unlink()
    assert [title for _, title in on_loading(tab, tab.pictures)] == ["step 3"]
    assert "3 steps" in on_loading(tab, tab.status)


def test_what_is_wrong_is_shown_as_one_sentence(tab):
    for given in (["", ""], ["../cats", ""], ["cats", "dogs"]):
        (said, _), = fake_gradio.press("Start", *given, "none: a new run", *values(tab))
        assert said.startswith("<div class='error'")
    (said, _), = fake_gradio.press("Start", "cats", "", "none: a new run", *values(tab, steps=2.5))
    assert "steps" in said and "class='error'" in said
    assert "class='error'" in fake_gradio.press("Save now")


def test_a_run_that_was_stopped_goes_on_with_what_was_set_then(tab):
    host = tab.runner.host
    host.interrupted_after = 2
    said = fake_gradio.press("Start", "cats", "", "none: a new run", *values(tab))
    assert "Stopped after step 2 of 3" in said[-1][0]
    host.interrupted_after = None
    folders, _, snapshots = fake_gradio.press("Refresh lists", "none: a new run")
    assert folders == {"choices": ["cats"]} and snapshots["choices"][1:] == ["style_step0000002"]
    said = fake_gradio.press("Start", "", "", "style_step0000002", *values(tab, steps=999, name="other"))
    assert "weights trained in 3 steps" in said[-1][0]


@pytest.mark.parametrize("button", ["Start", "Show the training"])
def test_what_the_page_says_to_choose_under_resume_is_there_when_the_training_is_over(tab, button):
    tab.runner.host.interrupted_after = 2
    said = fake_gradio.press("Start", "cats", "", "none: a new run", *values(tab))
    assert "choose 'style_step0000002' under Resume" in html.unescape(said[-1][0])
    (work, inputs, outputs), (no_more, _, (asked,)) = fake_gradio.button(button).handlers["then"]
    assert inputs == [tab.resume]
    now = dict(zip(outputs, work("none: a new run"), strict=True))[tab.resume]
    assert now == {"choices": ["none: a new run", "style_step0000002"]}
    *_, told = fake_gradio.button("Save now").handlers["click"]
    assert no_more() == "" and told == [asked], "that it will be done is not said any more"


def test_a_snapshot_that_another_one_has_taken_the_place_of_is_no_longer_chosen(tab):
    host = tab.runner.host
    host.interrupted_after = 1
    fake_gradio.press("Start", "cats", "", "none: a new run", *values(tab))
    assert "value" not in fake_gradio.press("Refresh lists", "style_step0000001")[-1]
    host.interrupted_after = 2
    fake_gradio.press("Start", "", "", "style_step0000001", *values(tab))
    *_, now = fake_gradio.press("Refresh lists", "style_step0000001")
    assert now == {"choices": ["none: a new run", "style_step0000002"], "value": "none: a new run"}


def test_a_page_has_on_loading_what_there_is_to_choose_from_by_then(tab):
    (tab.runner.host.pictures / "dogs").mkdir()
    tab.runner.host.interrupted_after = 2
    fake_gradio.press("Start", "cats", "", "none: a new run", *values(tab))
    assert on_loading(tab, tab.folder) == {"choices": ["cats", "dogs"]}
    assert on_loading(tab, tab.class_folder) == {"choices": ["", "cats", "dogs"]}
    assert on_loading(tab, tab.resume)["choices"][1:] == ["style_step0000002"]


def test_a_preset_fills_in_what_suits_and_says_why(tab):
    *filled, said = tab.fill_in("style", "cats")
    assert len(filled) == 6 and filled[0] == {"value": 64} and "tiny" in said
    assert "learning rate: the paper" in said and "adjust at: none (weights" in said
    assert tab.fill_in("none", "cats")[-1] == ""


def test_a_preset_is_for_the_checkpoint_that_is_chosen_and_for_the_folder_that_is_chosen_after_it(tab, monkeypatch):
    """Forge has the checkpoint before loaded until it draws the next picture."""
    known = {Path("chosen"): Outline("SDXL", 2_600_000_000, 2_500_000_000, 794)}
    monkeypatch.setattr("sara_webui.tab.training.outline_of_file", known.get)
    tab.chosen_checkpoint = lambda: Path("chosen")
    work, inputs, outputs = tab.folder.handlers["change"]
    assert inputs == [tab.preset, tab.folder] and outputs[0] is tab.inputs["resolution"]
    resolution, *_, said = work("subject", "cats")
    assert resolution == {"value": 1024} and "SDXL" in said and "1 picture" in said
    tab.chosen_checkpoint = lambda: Path("packed")
    assert tab.fill_in("subject", "cats")[0] == {"value": 64}, "what is loaded says more"
