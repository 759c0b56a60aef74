"""Somebody at ComfyUI's page, whose deeds are counted, and the way from photos to a picture in their style."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from demo import settings
from demo.digits import load_split
from demo.judge import judge_styled
from demo.make_style import draw_styled
from devtools.templates.graphs import TRAIN_A_STYLE

from .browser import ComfyPage

FORMS = IN_THE_GRAPH, IN_APP_MODE = "graph", "app"
MOST_DEEDS = 12  # that the way may take: clicks, choices of files, and texts that are typed
# What somebody looks for in the template browser.
SEARCHED = "lora train"


def styled_pictures(folder: Path, count: int) -> list[Path]:
    """Files of so many pictures in the demo's style, with nothing beside them, in a folder that exists."""
    files = []
    for number, pixels in enumerate(draw_styled(load_split().test.ink[:count])):
        files.append(folder / f"photo {number}.png")
        Image.fromarray((pixels * 255).round().astype(np.uint8)).save(files[-1])
    return files


class Person:
    """Clicks, types and chooses files as people do.

    Attributes:
        tab: the ComfyPage.
        deeds: what was done, in words; a click, a text that is typed and a choice of files each count as one.
    """

    def __init__(self, tab: ComfyPage):
        self.tab, self.page, self.deeds = tab, tab.page, []

    def click(self, what, name: str) -> None:
        """Click a locator's element, which people call `name`."""
        self.deeds.append(f"click {name}")
        what.click()

    def fill(self, field, name: str, text: str) -> None:
        """Click a field, and type in place of what stands there."""
        self.click(field, name)
        self.deeds.append(f"type {text}")
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(text)
        self.page.keyboard.press("Tab")

    def choose_files(self, button, name: str, files: list[Path]) -> None:
        """Click a button that asks for files, and choose some."""
        with self.page.expect_file_chooser() as asked:
            self.click(button, name)
        self.deeds.append(f"choose {len(files)} files")
        asked.value.set_files(files)

    def open_template(self, name: str) -> None:
        """By the template browser, from the button in the left bar."""
        self.click(self.page.get_by_role("button", name="Templates").first, "Templates")
        self.fill(self.page.get_by_placeholder("Search").last, "Search", SEARCHED)
        self.click(self.page.get_by_text(name, exact=True).first, name)

    def run(self, form: str) -> str:
        """Press Run; the id of the prompt, which must not be refused."""
        icon = {IN_THE_GRAPH: "queue-button-icon", IN_APP_MODE: "linear-run-button-icon"}[form]
        with self.page.expect_response(lambda answer: answer.url.split("?")[0].endswith("/prompt")) as caught:
            self.click(self.page.get_by_role("button").filter(has=self.page.get_by_test_id(icon)), "Run")
        return caught.value.json()["prompt_id"]

    def field(self, form: str, title: str, label: str):
        """Where a value is typed: on the node of that title, the widget `label`; or the form's line of that title."""
        if form == IN_APP_MODE:
            heading = self.page.get_by_test_id("builder-widget-label").get_by_text(title, exact=True)
            place = self.page.get_by_test_id("app-mode-widget-item").filter(has=heading)
        else:
            place = self.page.locator("[data-node-id]").filter(has=self.page.get_by_text(title, exact=True))
            place = place.get_by_test_id("node-widget").filter(has=self.page.get_by_label(label, exact=True)).first
        return place.locator("div:has(> input[role=spinbutton]), input:not([role=spinbutton])").first


class Drawn(NamedTuple):
    """Whether the picture with the new delta is in the style, and the one that the same prompt gives without it."""

    is_styled: bool
    base_is_styled: bool


def walk(person: Person, photos: list[Path], form: str, steps: int | None = None) -> Drawn:
    """The whole way, from the template browser to the picture; steps: of the training, None for the preset's.

    Raises TimeoutError or Playwright's errors where the page does not have what the way needs.
    """
    page = person.page
    prepare_training(person, photos, form, steps)
    queued = person.run(form)
    over = person.tab.wait(queued, 3600)
    assert over["status"]["status_str"] == "success", over["status"]["messages"]
    prompt = over["prompt"][2]
    (saver,) = (key for key, node in prompt.items() if node["class_type"] == "SaveImage")
    picture = over["outputs"][saver]["images"][0]
    page.locator(f'img[src*="{picture["filename"]}"]:visible').first.wait_for()
    return Drawn(_is_styled(person.tab, picture), _is_styled(person.tab, _without_delta(person.tab, prompt, saver)))


def prepare_training(
    person: Person, photos: list[Path], form: str, steps: int | None = None,
    look: Callable[[str], None] = lambda stage: None,
) -> None:
    """The way up to Run. look: called with "pictures" and "preset" when these are there."""
    page = person.page
    person.open_template(TRAIN_A_STYLE if form == IN_THE_GRAPH else f"{TRAIN_A_STYLE}.app")
    person.choose_files(page.get_by_role("button", name="choose files"), "choose files", photos)
    page.get_by_text(f"{len(photos)} pictures").first.wait_for()
    look("pictures")
    person.fill(person.field(form, "Trigger word", "value"), "Trigger word", settings.STYLE)
    person.click(page.get_by_role("button", name="Apply preset"), "Apply preset")
    page.get_by_text(f"{settings.SIZE} px").first.wait_for()
    page.get_by_text(f"{settings.SIZE} × {settings.SIZE}").first.wait_for()  # the gallery follows
    look("preset")
    if steps is not None:
        person.fill(person.field(form, "SaRA Train" if form == IN_THE_GRAPH else "Steps", "steps"), "steps", str(steps))


def _without_delta(tab: ComfyPage, prompt: dict[str, Any], saver: str) -> dict[str, str]:
    """The same picture, from the model as it was."""
    nodes = {key: node for key, node in prompt.items() if node["class_type"] not in ("SaRATrain", "SaRASave")}
    (apply,) = (key for key, node in nodes.items() if node["class_type"] == "SaRAApply")
    (sampler,) = (node for node in nodes.values() if node["inputs"].get("model") == [apply, 0])
    sampler["inputs"]["model"] = nodes[apply]["inputs"]["model"]
    needed, due = {}, [saver]
    while due:
        key = due.pop()
        needed[key] = nodes[key]
        due += [value[0] for value in nodes[key]["inputs"].values() if isinstance(value, list)]
    return tab.server.client.run(needed)[saver]["images"][0]


def _is_styled(tab: ComfyPage, picture: dict[str, str]) -> bool:
    pixels = Image.open(io.BytesIO(tab.server.client.view(picture))).convert("RGB")
    assert pixels.size == (settings.SIZE, settings.SIZE)
    return bool(judge_styled(np.asarray(pixels, dtype=np.float32)[None] / 255)[0])
