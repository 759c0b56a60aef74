"""The page in a real Chromium at a real ComfyUI, in both of its renderers; skipped where there is no Chromium.

A test takes `page` and runs twice, once for each renderer; `classic_page` runs once. Both are tabs that the tests of a
file share, with an empty graph in front. The console must be free of errors after every test.

SARA_FRONTEND may name the folder of another frontend than ComfyUI brings, such as `static` of an unpacked
comfyui-frontend-package.
"""

import os
import shutil

import pytest

from devtools.browser import NONE_FOUND, chromium, find_chromium
from devtools.comfyui.install import ROOT
from devtools.comfyui.server import Server
from tests.support.browser import CLASSIC, RENDERERS, ComfyPage

PICTURES = "digits"


@pytest.fixture(scope="session")
def page_server(host, checkpoint, tmp_path_factory):
    """A server of its own for the page: the demo's checkpoint, and its pictures with captions in input/digits."""
    if find_chromium() is None:
        pytest.skip(NONE_FOUND)
    base = tmp_path_factory.mktemp("page")
    shutil.copytree(ROOT / "demo" / "style", base / "input" / PICTURES)
    frontend = os.environ.get("SARA_FRONTEND")
    arguments = ("--front-end-root", frontend) if frontend else ()
    with Server(host, base, model_paths={"checkpoints": checkpoint.parent}, arguments=arguments) as running:
        yield running


@pytest.fixture(scope="module")
def passing_files(page_server):
    """For a file whose tests train and save: what they leave in the output folder goes with them."""
    before = set(page_server.output.rglob("*"))
    yield
    for path in set(page_server.output.rglob("*")) - before:
        if path.is_file():
            path.unlink()


@pytest.fixture(scope="module")
def browser(page_server):
    """For one file only: while Playwright runs, nothing else in this process can run an event loop."""
    with chromium(find_chromium()) as running:
        yield running


@pytest.fixture(scope="module")
def tabs(browser, page_server):
    """Renderer → its open tab; a test that failed loses its tab."""
    opened: dict[str, ComfyPage] = {}
    yield opened
    for tab in opened.values():
        tab.close()


@pytest.fixture(params=RENDERERS)
def page(request, browser, page_server, tabs, tmp_path):
    """A ComfyPage in each of the renderers."""
    yield from _watched(request, browser, page_server, tabs, tmp_path, request.param)


@pytest.fixture
def classic_page(request, browser, page_server, tabs, tmp_path):
    """A ComfyPage in the classic renderer, for what both do alike."""
    yield from _watched(request, browser, page_server, tabs, tmp_path, CLASSIC)


def _watched(request, browser, server, tabs, tmp_path, renderer):
    tab = tabs.get(renderer)
    if tab is None:
        tab = tabs[renderer] = ComfyPage(browser, server, renderer)
    else:
        tab.empty()
    yield tab
    failed = getattr(request.node, "call_failed", True)
    complaints = tab.complaints()
    if failed or complaints:
        picture = tab.screenshot(tmp_path / "page.png")
        tabs.pop(renderer).close()
        print(f"The page as it was: {picture}")
    assert failed or not complaints, complaints


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call":
        item.call_failed = report.failed
    return report
