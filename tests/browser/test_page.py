"""ComfyUI's page takes our extensions and example workflows without a word of complaint, and has our command."""

import json
import urllib.request

import pytest

from devtools.comfyui.install import ROOT

# As apps; in Nodes 2.0 test_forms.py opens these, and test_examples_opened.py the graphs in both renderers.
APPS = sorted((ROOT / "example_workflows").glob("*.app.json"), key=lambda path: path.stem)


def test_the_page_takes_all_our_scripts(page):
    with urllib.request.urlopen(f"{page.server.client.address}/extensions") as answer:
        ours = [path for path in json.load(answer) if "/comfyui-sara/" in path]
    assert len(ours) == len(list((ROOT / "js").rglob("*.js")))
    loaded = page.page.evaluate("() => performance.getEntriesByType('resource').map((entry) => entry.name)")
    for path in ours:
        assert any(url.split("?")[0].endswith(path) for url in loaded), path
    names = page.page.evaluate("() => app.extensions.map((extension) => extension.name)")
    assert "SaRA.Report" in names


@pytest.mark.parametrize("app", APPS, ids=lambda path: path.stem)
def test_every_app_opens(classic_page, app):
    classic_page.load(app)
    assert classic_page.node_types() == sorted(node["type"] for node in json.loads(app.read_bytes())["nodes"])


def test_the_report_command_puts_the_report_into_the_clipboard(page):
    context = page.page.context
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.page.evaluate("() => app.extensionManager.command.execute('SaRA.CopyReport')")
    page.page.get_by_text("The problem report is in the clipboard").first.wait_for()
    assert "ComfyUI" in page.page.evaluate("() => navigator.clipboard.readText()")


def test_a_page_that_complains_is_noticed(classic_page):
    classic_page.page.evaluate("() => { console.error('our own trouble'); setTimeout(() => nowhere.x, 0) }")
    classic_page.until(lambda: len(classic_page.complaints()) == 2)
    classic_page.expect_complaint("our own trouble", "nowhere is not defined")
    assert classic_page.complaints() == []
