"""A Chromium that this machine has already, for what is only true in a real page: tests, example workflows, pictures.

Nothing is downloaded: Playwright brings the protocol, the system the browser.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
# What Chromium would do beside showing pages; in containers it cannot have its sandbox.
OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
NONE_FOUND = "no Chromium was found (SARA_CHROMIUM may name one)"


def find_chromium() -> Path | None:
    """The browser that SARA_CHROMIUM names, or one on the PATH; None without any."""
    named = os.environ.get("SARA_CHROMIUM")
    found = filter(None, map(shutil.which, [named] if named else COMMANDS))
    return next(map(Path, found), None)


@contextlib.contextmanager
def chromium(path: Path) -> Iterator:
    """A running browser of Playwright's synchronous interface, without a window; ended on leaving."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()
