"""The pack loads in the oldest and the newest ComfyUI that it is made for."""

import os

import pytest

from devtools.comfyui.install import OLDEST_VERSION, prepare
from devtools.comfyui.server import Server

NODE_IDS = [
    "SaRATrain", "SaRASave", "SaRALoader", "SaRAApply", "SaRABake", "SaRAMerge", "SaRAExtract", "SaRAInspect",
    "SaRAConvert",
]  # fmt: skip


@pytest.fixture(scope="module")
def oldest_server(tmp_path_factory):
    if os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH names the one ComfyUI to test with")
    with Server(prepare(OLDEST_VERSION), tmp_path_factory.mktemp("oldest")) as running:
        yield running


@pytest.mark.parametrize("which", ["server", "oldest_server"])
def test_the_pack_loads_and_offers_its_nodes(which, request):
    running = request.getfixturevalue(which)
    info = running.client.object_info()
    assert [name for name in NODE_IDS if name not in info] == []
    assert {info[name]["python_module"] for name in NODE_IDS} == {"custom_nodes.comfyui-sara"}
    log = running.log().partition("To see the GUI go to")[0].splitlines()  # other tests use the server, too
    assert [line for line in log if "SaRA:" in line or "custom_nodes/comfyui-sara" in line and "FAILED" in line] == []
