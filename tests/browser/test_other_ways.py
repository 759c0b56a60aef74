"""The page as others have it: behind a path prefix, for a second client, with users of their own, in an old host."""

import json
import os
import shutil
import types
import urllib.request

import pytest

from devtools.comfyui.client import Client
from devtools.comfyui.install import OLDEST_VERSION, ROOT, prepare
from devtools.comfyui.server import Server
from tests.support.browser import CLASSIC, IS_READY, ComfyPage
from tests.support.prefix_proxy import PrefixProxy

PICTURES = "digits"
THUMBNAILS = ".sara-dataset-card img"
SEEN = f"() => [...document.querySelectorAll('{THUMBNAILS}')].some((image) => image.naturalWidth > 0)"
FAVICON = "favicon"  # which ComfyUI itself asks for where it is not


def assert_our_nodes_work(tab):
    """Thumbnails come through our addresses, and the cards know the list of deltas; nothing complains."""
    dataset = tab.add("SaRADataset")
    tab.add("SaRALoader", (700, 100))
    tab.set_widget(dataset, "folders", PICTURES)
    tab.page.wait_for_function(SEEN)
    tab.page.get_by_text("No delta yet").wait_for()
    assert tab.complaints(FAVICON) == []


def opened(browser, server):
    tab = ComfyPage(browser, server, CLASSIC)
    tab.empty()
    return tab


def test_behind_a_path_prefix(browser, page_server):
    with PrefixProxy(page_server.client.address) as proxy:
        tab = opened(browser, types.SimpleNamespace(client=Client(proxy.address)))
        assert_our_nodes_work(tab)
        tab.close()


def test_a_second_client_beside_the_first(browser, page_server):
    first, second = opened(browser, page_server), opened(browser, page_server)
    for tab in (first, second):
        assert_our_nodes_work(tab)
    first.close()
    assert second.page.evaluate(SEEN)
    second.close()


@pytest.fixture
def with_pictures(tmp_path):
    """A base directory of its own, with a space and a letter beyond ASCII in its name."""
    base = tmp_path / "a folder ü"
    shutil.copytree(ROOT / "demo" / "style", base / "input" / PICTURES)
    return base


def test_for_a_user_of_several(browser, host, with_pictures):
    with Server(host, with_pictures, arguments=("--multi-user",)) as server:
        request = urllib.request.Request(
            f"{server.client.address}/users", b'{"username": "ann"}', {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            user = json.load(answer)
        context = browser.new_context()
        context.add_init_script(f"localStorage.setItem('Comfy.userId', {json.dumps(user)})")
        page = context.new_page()
        page.goto(server.client.address)
        page.wait_for_function(IS_READY)
        question = "/sara/dataset?folder=digits&resolution=512"
        answer = page.evaluate("asked => app.api.fetchApi(asked).then((answer) => answer.json())", question)
        assert answer["pictures"], answer
        context.close()


def test_in_the_oldest_comfyui(browser, with_pictures):
    if os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH names the one ComfyUI to test with")
    with Server(prepare(OLDEST_VERSION), with_pictures) as server:
        tab = opened(browser, server)
        assert_our_nodes_work(tab)
        tab.close()


def test_a_node_that_is_in_no_graph_yet_is_not_asked_what_feeds_it(classic_page):
    """As newer frontends make nodes, where the question is an error."""
    file = classic_page.page.evaluate("""async () => {
      const { modelFile } = await import("/extensions/comfyui-sara/loader/family.js")
      const throwing = () => { throw new Error("no graph") }
      return String(modelFile({ graph: null, inputs: [{ type: "MODEL" }], getInputNode: throwing })) }""")
    assert file == "undefined"
