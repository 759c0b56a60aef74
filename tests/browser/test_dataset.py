"""The gallery of SaRA Dataset: pictures are dropped on it, captions written under them, and nothing of it is saved."""

import io
import json

import pytest
from PIL import Image

CARD = ".sara-dataset-card"


def picture(size, colour):
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "PNG")
    return content.getvalue()


def files(**contents):
    """Files as a file chooser hands them over; "_" in a name is the point before its ending."""
    kinds = {"png": "image/png", "txt": "text/plain", "heic": "image/heic"}
    return [
        {"name": name.replace("_", "."), "mimeType": kinds[name.split("_")[1]], "buffer": content}
        for name, content in contents.items()
    ]


@pytest.fixture
def gallery(page):
    """The page with one SaRA Dataset, which is `page.dataset`."""
    page.dataset = page.add("SaRADataset")
    page.page.locator(".sara-dataset").wait_for()
    yield page
    page.empty()


def choose(page, chosen, count):
    with page.page.expect_file_chooser() as chooser:
        page.page.locator(".sara-dataset-drop").click()
    chooser.value.set_files(chosen)
    page.page.wait_for_function(f"document.querySelectorAll('{CARD}').length === {count}")


def marks(page):
    return page.page.locator(".sara-dataset-mark").all_inner_texts()


def test_pictures_and_captions_are_dropped_shown_and_written(gallery):
    page, inputs = gallery.page, gallery.server.input
    large, small = picture((640, 384), "red"), picture((64, 64), "blue")
    choose(gallery, files(a_png=large, a_txt=b"a red wall", b_png=small, b_txt=b"caf\xe9", c_png=small, d_heic=b"x"), 3)
    folder = inputs / gallery.widget(gallery.dataset, "folders").splitlines()[-1]
    assert (folder / "a.png").read_bytes() == large and (folder / "a.txt").read_text() == "a red wall"
    assert page.locator(".sara-dataset-counts").inner_text() == "3 pictures, 2 without caption"
    assert sorted(marks(gallery)) == ["copy", "no caption", "no caption", "tiny", "tiny"]
    notes = page.locator(".sara-dataset-notes").inner_text()
    assert "d.heic is left out" in notes and "b.txt: it is not UTF-8 text" in notes and not (folder / "b.txt").exists()
    assert page.locator(".sara-dataset-bucket").first.inner_text() == "640 × 384"

    field = page.get_by_label("Caption of b.png")
    field.fill("<img src=x onerror=alert(1)>")
    field.press("Control+Enter")
    page.get_by_text("saved", exact=True).wait_for()
    assert (folder / "b.txt").read_text() == "<img src=x onerror=alert(1)>"
    field.press("Tab")
    page.keyboard.type("blue")
    page.get_by_role("button", name="Refresh").click()
    gallery.until(lambda: page.locator(".sara-dataset-counts").inner_text() == "3 pictures")
    assert (folder / "c.txt").read_text() == "blue" and "no caption" not in marks(gallery)

    saved = json.dumps(page.evaluate("() => app.graph.serialize()"))
    assert "red wall" not in saved and "gallery" not in saved


def test_the_trigger_stands_before_captions_that_lack_it_and_resolution_and_folders_are_followed(gallery):
    page = gallery.page
    gallery.set_widget(gallery.dataset, "folders", "digits")
    count = len(list((gallery.server.input / "digits").glob("*.png")))
    page.wait_for_function(f"document.querySelectorAll('{CARD}').length === {count}")
    caption = page.locator(f"{CARD} textarea").first.input_value()
    gallery.set_widget(gallery.dataset, "trigger", "ohwx")
    gallery.until(lambda: page.locator(".sara-dataset-prefix").first.inner_text() == "ohwx,")
    gallery.set_widget(gallery.dataset, "trigger", caption.split()[0])
    gallery.until(lambda: not page.locator(".sara-dataset-prefix").first.is_visible())
    assert "tiny" in marks(gallery)
    gallery.set_widget(gallery.dataset, "resolution", 64)
    gallery.until(lambda: marks(gallery) == [])
    page.get_by_role("button", name="Leave out the folder digits").click()
    gallery.until(lambda: page.locator(CARD).count() == 0)
    assert gallery.widget(gallery.dataset, "folders") == ""


def test_a_folder_that_is_not_there_is_said(gallery):
    gallery.set_widget(gallery.dataset, "folders", "nowhere")
    gallery.until(lambda: "There is no folder 'nowhere'" in gallery.page.locator(".sara-dataset-notes").inner_text())
    gallery.expect_complaint("400")
