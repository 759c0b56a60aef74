"""The pack loads in the oldest and the newest ComfyUI that it is made for, and trains and draws in the oldest, too."""

import os
import shutil

import pytest

from devtools.comfyui.install import OLDEST_VERSION, prepare
from devtools.comfyui.server import Server
from devtools.demo import STYLE_FOLDER
from devtools.templates import workflows
from sara_core import SparseDelta
from tests.project.test_house import NODES

TRAINING = {"steps": 2, "density": 1.0, "batch_size": 1}


@pytest.fixture(scope="module")
def oldest_server(checkpoint, tmp_path_factory):
    if os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH names the one ComfyUI to test with")
    base = tmp_path_factory.mktemp("oldest")
    with Server(prepare(OLDEST_VERSION), base, model_paths={"checkpoints": checkpoint.parent}) as running:
        yield running


@pytest.mark.parametrize("which", ["server", "oldest_server"])
def test_the_pack_loads_and_offers_its_nodes(which, request):
    running = request.getfixturevalue(which)
    info = running.client.object_info()
    assert [name for name in NODES if name not in info] == []
    assert {info[name]["python_module"] for name in NODES} == {"custom_nodes.comfyui-sara"}
    log = running.log().partition("To see the GUI go to")[0].splitlines()  # other tests use the server, too
    assert [line for line in log if "SaRA:" in line or "custom_nodes/comfyui-sara" in line and "FAILED" in line] == []


def test_the_oldest_trains_saves_and_draws_with_the_delta(oldest_server, checkpoint):
    info, client = oldest_server.client.object_info(), oldest_server.client
    folder = oldest_server.input / "few"
    folder.mkdir()
    for file in STYLE_FOLDER.glob("plain-00[01].*"):
        shutil.copy(file, folder)
    prompt = workflows.train_style(info, checkpoint.name, "few", TRAINING, "sara/old")
    outputs = client.run(prompt)
    assert workflows.output_of(prompt, outputs, "SaRATrain")["sara_run"][0]["end"]["kind"] == "finished"
    assert len(SparseDelta.load(oldest_server.output / "sara" / "old_00001_.safetensors").entries) > 0
    prompt = workflows.use_delta(client.object_info(), checkpoint.name, "old_00001_.safetensors", "a three", 1)
    assert workflows.output_of(prompt, client.run(prompt), "SaveImage")["images"]
