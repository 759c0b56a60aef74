"""SaRA Loader's cards in the real page: they say what the plain inputs say, and nothing in a file can break them."""

import base64
import io

import pytest
import torch
from PIL import Image

from sara_core import SparseDelta, SparseEntry
from sara_core.files import header

HOSTILE = "<img src=x onerror=window.hurt=1>.safetensors"
NO_DELTA = "(no delta yet)"


@pytest.fixture
def files(page_server):
    """Four deltas: of the checkpoint's family, of another one, a stopped training's, and a file that is none."""
    models, output = page_server.base / "models" / "sara", page_server.base / "output" / "sara"
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "orange").save(picture, "JPEG")
    url = "data:image/jpeg;base64," + base64.b64encode(picture.getvalue()).decode()
    entry = SparseEntry(torch.tensor([1, 7], dtype=torch.int32), torch.tensor([0.1, -0.2]), (256, 64))
    made = {
        models / "sunset.safetensors": {
            "sara.family": "SD1.5", "modelspec.title": "Sunset", "modelspec.trigger_phrase": "sunset colours",
            "modelspec.thumbnail": url,
        },
        models / "photo.safetensors": {"sara.family": "SDXL", "modelspec.title": "<b>Photo</b>"},
        output / "stopped_run_00001.safetensors": {"sara.family": "SD1.5"},
    }  # fmt: skip
    for path, said in made.items():
        SparseDelta({"diffusion_model.time_embed.0.weight": entry}, said).save(path)
    hostile = models / HOSTILE
    hostile.write_bytes(b"\x10" + b"\0" * 7 + b'{"a":[[[[[[[')
    yield models
    for path in (*made, hostile, *output.glob("again_*")):
        path.unlink(missing_ok=True)


def add_loader(page, behind_checkpoint=True):
    """A loader whose first delta is sunset; its id."""
    page.page.evaluate("() => app.refreshComboInNodes()")  # what the page knows is of an earlier test
    loader = page.add("SaRALoader", (500, 120))
    if behind_checkpoint:
        page.connect(page.add("CheckpointLoaderSimple", (60, 120)), "MODEL", loader, "model")
    page.set_widget(loader, "sara_name", "sunset.safetensors")
    page.page.get_by_role("group", name="Sunset").wait_for()
    return loader


def inputs(page, loader):
    """What the prompt would have of the loader's own."""
    script = "async (id) => (await app.graphToPrompt()).output[id].inputs"
    return {name: value for name, value in page.page.evaluate(script, str(loader)).items() if name != "model"}


def take(page, words):
    """Add the first delta that these words find."""
    page.page.get_by_role("button", name="Add a delta").click()
    page.page.get_by_label("Search").fill(words)
    page.page.keyboard.press("Enter")
    page.settle()


def test_whoever_goes_on_by_tab_after_a_strength_stays_in_the_card(page, files):
    loader = add_loader(page)
    number = page.page.get_by_role("spinbutton", name="Strength of Sunset")
    number.fill("0.5")
    number.press("Tab")
    page.settle()
    assert page.widget(loader, "strength") == 0.5
    assert page.page.evaluate("() => document.activeElement.innerText") == "Add a delta"
    number.fill("1000")
    number.press("Enter")
    assert number.input_value() == "0.5"
    number.fill("1")  # the page keeps values for the next node of this number
    number.press("Enter")


def test_the_prompt_is_that_of_the_plain_inputs(classic_page, files):
    page = classic_page
    loader = add_loader(page)
    plain = {"sara_name": "sunset.safetensors", "strength": 1, "strength_clip": 1, "more": ""}
    assert inputs(page, loader) == plain
    take(page, "photo")
    take(page, "stopped")
    cards = page.page.locator(".sara-card")
    cards.nth(1).locator(".sara-number").fill("-0.5")
    cards.nth(1).locator(".sara-number").press("Tab")
    cards.nth(2).get_by_role("checkbox").click()
    more = "photo.safetensors = -0.5\nstopped_run_00001.safetensors = 1, off"
    assert inputs(page, loader) == {**plain, "more": more}
    cards.nth(0).get_by_role("checkbox").click()
    assert inputs(page, loader) == {**plain, "strength": 0, "strength_clip": 0, "more": more}
    page.page.evaluate("() => app.loadGraphData(app.graph.serialize())")
    page.settle(1000)
    assert [cards.nth(place).get_by_role("checkbox").is_checked() for place in range(3)] == [False, True, False]
    cards.nth(0).get_by_role("checkbox").click()
    cards.nth(1).get_by_label("Take it out").click()
    kept = "stopped_run_00001.safetensors = 1, off"
    assert inputs(page, page.node("SaRALoader")) == {**plain, "more": kept}


def test_the_window_has_other_families_grey_and_stopped_ones_apart_and_text_stays_text(page, files):
    add_loader(page)
    page.page.get_by_role("button", name="Add a delta").click()
    tiles = page.page.locator(".sara-tile")
    grey = tiles.filter(has_text="b>Photo")
    grey.wait_for()
    page.until(lambda: "sara-other" in grey.get_attribute("class"))
    assert "sara-other" not in tiles.filter(has_text="sunset.safetensors").get_attribute("class")
    assert page.page.locator(".sara-section h3").all_inner_texts() == ["Stopped trainings"]
    assert tiles.last.locator("strong").inner_text() == "stopped_run_00001"
    assert "not a complete .safetensors file" in tiles.filter(has_text="onerror").inner_text()
    assert page.page.evaluate("() => window.hurt") is None and not page.page.locator("img[src=x]").count()
    page.page.keyboard.press("Escape")
    page.page.locator("dialog.sara-dialog").wait_for(state="detached")


def test_what_is_said_of_a_delta_is_saved_in_its_file(page, files):
    add_loader(page)
    page.page.get_by_role("group", name="Sunset").get_by_label("About this delta").click()
    save = page.page.get_by_role("button", name="Save in the file")
    save.wait_for()
    assert save.is_disabled() and page.page.locator(".sara-bar").count() == 1
    page.page.get_by_label("Title").fill("Evening")
    save.click()
    page.page.get_by_text("Saved.").wait_for()
    page.page.keyboard.press("Escape")
    page.page.get_by_role("group", name="Evening").wait_for()
    assert header.read(files / "sunset.safetensors").metadata["modelspec.title"] == "Evening"


def test_a_delta_that_is_saved_is_there_without_a_reload(page, files):
    loader, save = add_loader(page, behind_checkpoint=False), page.add("SaRASave", (1000, 120))
    page.set_widget(save, "filename_prefix", "sara/again")
    page.connect(loader, "delta", save, "delta")
    page.run()
    options = "id => app.graph.getNodeById(id).widgets.find((w) => w.name === 'sara_name').options.values"
    page.until(lambda: "again_00001_.safetensors" in page.page.evaluate(options, loader))


def test_without_a_delta_the_card_says_so_and_takes_the_first_that_comes(classic_page):
    page = classic_page
    page.page.evaluate("() => app.refreshComboInNodes()")
    loader = page.add("SaRALoader")
    page.page.get_by_role("group", name="No delta yet").wait_for()
    assert page.widget(loader, "sara_name") == NO_DELTA
    entry = SparseEntry(torch.tensor([1], dtype=torch.int32), torch.tensor([0.1]), (256, 64))
    path = page.server.base / "models" / "sara" / "first.safetensors"
    SparseDelta({"diffusion_model.time_embed.0.weight": entry}).save(path)
    try:
        page.page.evaluate("() => app.refreshComboInNodes()")
        page.page.get_by_role("group", name="first").wait_for()
        assert page.widget(loader, "sara_name") == "first.safetensors"
    finally:
        path.unlink()
