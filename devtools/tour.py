"""Draws the pictures of docs/first-style.md: the way from photos to a picture in ComfyUI's own page, with the demo's
model and pictures in the demo's style.

Needs Chromium (see devtools/browser.py), and the interpreter that `python dev.py host --python` prints:

    python -m devtools.tour [--steps N]
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from demo import settings
from demo.digits import caption
from tests.support.browser import NODES_2, ComfyPage
from tests.support.person import IN_APP_MODE, SEARCHED, Person, prepare_training, styled_pictures

from .browser import NONE_FOUND, chromium, find_chromium
from .checkpoint import demo_checkpoint
from .comfyui.install import ROOT, HostError, prepare
from .comfyui.server import Server
from .progress import Progress

FOLDER = ROOT / "docs" / "images" / "first-style"
WIDTH = 1200  # pixels of a picture
PICTURES = 12
USE_A_DELTA = "Use a delta.app"
DRAWN = "my_style_"  # as the templates call their pictures


class Tour:
    """A person in App mode, who shows what there is to see at each step."""

    def __init__(self, tab: ComfyPage):
        self.tab, self.page, self.person = tab, tab.page, Person(tab)
        self.count = 0

    def show(self, name: str, scrolled_to: str | None = None) -> None:
        """Write the page as it is; scrolled_to: a heading of the form that is to be at its top."""
        if scrolled_to is not None:
            heading = self.page.get_by_test_id("builder-widget-label").get_by_text(scrolled_to, exact=True)
            heading.evaluate("(heading) => heading.scrollIntoView({ block: 'start' })")
        self.page.mouse.move(600, 700)  # away from what would say something of itself
        self.tab.settle(1500)
        self.count += 1
        shot = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        height = round(shot.height * WIDTH / shot.width)
        file = FOLDER / f"{self.count}-{name}.jpg"
        shot.resize((WIDTH, height), Image.Resampling.LANCZOS).save(file, quality=84)
        print(file)

    def templates(self) -> None:
        """What the search finds."""
        self._browse_templates(SEARCHED)
        drawn = "() => [...document.images].filter((image) => image.naturalWidth === 800).length >= 4"
        self.page.wait_for_function(drawn)
        self.show("templates")
        self.page.keyboard.press("Escape")

    def training(self, photos: list[Path], steps: int) -> None:
        """From the photos to the picture at the end."""
        headings = {"pictures": "Pictures and their captions", "preset": "Before this training"}
        prepare_training(
            self.person, photos, IN_APP_MODE, steps, lambda stage: self.show(stage, scrolled_to=headings[stage])
        )
        to_draw = self.page.get_by_test_id("app-mode-widget-item").locator("textarea").last
        to_draw.fill(caption(3, ""))
        queued = self.person.run(IN_APP_MODE)
        half = steps // 2
        step = "() => Number(document.querySelector('.sara-train-phase')?.innerText.match(/step (\\d+)/)?.[1] ?? 0)"
        self.tab.until(lambda: self.page.evaluate(step) >= half, 3600)
        self.show("training", scrolled_to="Training")
        self.tab.wait(queued, 3600)
        self._wait_for_picture(1)
        self.show("picture", scrolled_to="Training")

    def use(self) -> None:
        """Another picture with the delta, and the same without it."""
        self._browse_templates(USE_A_DELTA)
        self.page.get_by_text(USE_A_DELTA, exact=True).first.click()
        for side in ("Width", "Height"):
            self.person.fill(self.person.field(IN_APP_MODE, side, side), side, str(settings.SIZE))
        self.page.get_by_test_id("app-mode-widget-item").locator("textarea").first.fill(caption(5, ""))
        self.tab.wait(self.person.run(IN_APP_MODE), 600)
        self._wait_for_picture(2)
        self.show("more", scrolled_to="Model")

    def _browse_templates(self, searched: str) -> None:
        """By its command: App mode has no button for it."""
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        self.page.get_by_placeholder("Search").last.fill(searched)

    def _wait_for_picture(self, number: int) -> None:
        self.page.locator(f'img[src*="{DRAWN}{number:05d}_"]:visible').first.wait_for()


def main() -> int:
    parser = argparse.ArgumentParser(prog="devtools.tour", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="of the training (default: %(default)s)")
    steps = parser.parse_args().steps
    if find_chromium() is None:
        raise HostError(f"The pictures cannot be drawn: {NONE_FOUND}.")
    checkpoint = demo_checkpoint(Progress())
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        base, photos = Path(folder, "comfyui"), Path(folder, "photos")
        photos.mkdir()
        files = styled_pictures(photos, PICTURES)
        with Server(prepare(), base, model_paths={"checkpoints": checkpoint.parent}) as server, chromium(
            find_chromium()
        ) as browser:
            tour = Tour(ComfyPage(browser, server, NODES_2))
            tour.templates()
            tour.training(files, steps)
            tour.use()
    return 0


if __name__ == "__main__":
    sys.exit(main())
