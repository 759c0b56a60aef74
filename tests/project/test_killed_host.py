"""A ComfyUI that is killed while it trains leaves a snapshot, and the next one goes on from it exactly."""

import shutil
import time

import pytest
import torch

from devtools.comfyui.server import Server
from devtools.demo import STYLE_FOLDER
from devtools.templates import workflows
from sara_core import SparseDelta

TRAINING = {"steps": 12, "batch_size": 2, "density": 2.0, "learning_rate": 1e-3}
TIMEOUT = 300.0


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "input" / "few"
    folder.mkdir(parents=True)
    for picture in sorted(STYLE_FOLDER.glob("*.png"))[:4]:
        for file in (picture, picture.with_suffix(".txt")):
            shutil.copy(file, folder)
    return tmp_path


def prompt_of(server, checkpoint, prefix, **training):
    """The example workflow with a snapshot after every step."""
    info = server.client.object_info()
    prompt = workflows.train_style(info, checkpoint.name, "few", {**TRAINING, **training}, prefix)
    required = info["SaRATrainOptions"]["input"]["required"]
    options = {name: specification[1]["default"] for name, specification in required.items()}
    prompt["options"] = {"class_type": "SaRATrainOptions", "inputs": {**options, "snapshot_every": 1}}
    train, = (node for node in prompt.values() if node["class_type"] == "SaRATrain")
    train["inputs"]["options"] = ["options", 0]
    return prompt


def trained(server, prompt):
    saved = workflows.output_of(prompt, server.client.run(prompt), "SaRASave")
    return SparseDelta.load(server.output / saved["text"][0])


def test_the_next_comfyui_goes_on_where_a_killed_one_was(host, checkpoint, base):
    paths = {"checkpoints": checkpoint.parent}
    with Server(host, base, model_paths=paths) as server:
        server.client.queue(prompt_of(server, checkpoint, "sara/killed"))
        deadline = time.monotonic() + TIMEOUT
        while not (left := sorted((base / "output" / "sara_snapshots").glob("*_step*[3-9].safetensors"))):
            assert time.monotonic() < deadline, server.log()
            time.sleep(0.02)
        server.kill()
    with Server(host, base, model_paths=paths) as server:
        left = sorted((base / "output" / "sara_snapshots").glob("*.safetensors"))
        assert left and not list((base / "output" / "sara").glob("*.safetensors"))
        resumed = trained(server, prompt_of(server, checkpoint, "sara/resumed", resume=left[-1].name))
        straight = trained(server, prompt_of(server, checkpoint, "sara/straight"))
    assert resumed.entries.keys() == straight.entries.keys()
    for name, entry in straight.entries.items():
        assert torch.equal(resumed.entries[name].values, entry.values), name
