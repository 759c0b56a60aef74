"""What people have on their disks from revision 665bf67 goes on to work: deltas, snapshots, workflows.

tests/samples/generate.py has made the files, with that revision.
"""

import json
import shutil

import pytest
import torch

from devtools.templates import ui_workflow
from sara_core import SaRA, SparseDelta, diffusers_bridge
from sara_core.__main__ import main
from tests.project.test_house import NODES, ROOT
from tests.samples.exact import digest, exact_pipeline, exact_weights
from tests.samples.runs import (
    COMMAND_RUN, COUNT, NODE_RUN, NODE_RUNS, OPTIMIZERS, STEPS_AFTER, STEPS_BEFORE, STOPPED_AFTER, latents_and_captions,
    small_net, train_small_net,
)  # fmt: skip
from tests.samples.workflow import put_files
from tests.support import tiny_diffusers, toy_models
from tests.support.toy_training import train

# Nodes that were not there when the samples were made, which are never made anew.
CAME_LATER = {"SaRADataset"}
SAMPLES = ROOT / "tests/samples"
RECORDED = json.loads((SAMPLES / "samples.json").read_text())
PIPELINES = {
    "command_sd": tiny_diffusers.pipeline, "command_sdxl": tiny_diffusers.sdxl_pipeline,
    "command_sd3": tiny_diffusers.sd3_pipeline, "command_flux": tiny_diffusers.flux_pipeline,
}  # fmt: skip


def sample(name):
    return SparseDelta.load(SAMPLES / f"deltas/{name}.safetensors")


def assert_nearly_equal(delta, name):
    """To the sample, which another processor may have rounded otherwise."""
    expected = sample(name).entries
    assert delta.entries.keys() == expected.keys()
    for weight, entry in delta.entries.items():
        assert torch.equal(entry.indices, expected[weight].indices), weight
    found, wanted = (torch.cat([every[weight].values for weight in expected]) for every in (delta.entries, expected))
    assert wanted.norm() > 0 and (found - wanted).norm() / wanted.norm() < 1e-3


def test_every_delta_is_recorded():
    assert {path.stem for path in (SAMPLES / "deltas").iterdir()} == RECORDED.keys()
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*.*")) < 1_500_000


@pytest.mark.parametrize("name", RECORDED)
def test_a_delta_loads_and_applies_as_it_did(name, capsys):
    delta, recorded = sample(name), RECORDED[name]
    assert (delta.nnz, len(delta.entries)) == (recorded["elements"], recorded["weights"])
    base = exact_weights({weight: entry.shape for weight, entry in delta.entries.items()})
    before = digest(base)
    for strength, expected in recorded["applied"].items():
        handle = delta.apply_(base, float(strength))
        assert digest(base) == expected
        handle.remove()
        assert digest(base) == before
    assert main(["inspect", str(SAMPLES / f"deltas/{name}.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["elements"] == delta.nnz


@pytest.mark.parametrize("name", PIPELINES)
def test_a_delta_of_each_family_loads_into_diffusers_as_it_did(name, tmp_path):
    pipeline = exact_pipeline(PIPELINES[name](tmp_path / "tokenizer"))
    diffusers_bridge.load_delta(pipeline, sample(name))
    assert digest(diffusers_bridge.denoiser(pipeline).state_dict()) == RECORDED[name]["applied in diffusers"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_that_a_program_saved_goes_on(name):
    kind, options = OPTIMIZERS[name]
    model = small_net()
    optimizer = SaRA(model, count=COUNT, optimizer=kind, **options)
    # weights_only: there is nothing in it that names a module of ours.
    state = torch.load(SAMPLES / f"snapshots/library_{name}.pt", weights_only=True)
    optimizer.load_state_dict(state)
    assert optimizer.values.count_nonzero() > 0.9 * COUNT
    assert torch.equal(optimizer.values.detach(), state["sara"]["values"])
    train_small_net(model, optimizer, STEPS_BEFORE, STEPS_BEFORE + STEPS_AFTER)
    assert_nearly_equal(optimizer.delta(), f"library_{name}")


def test_a_run_of_the_command_line_goes_on(tmp_path, capsys):
    exact_pipeline(tiny_diffusers.pipeline(tmp_path / "tokenizer")).save_pretrained(tmp_path / "base")
    target = tmp_path / "resumed.safetensors"
    snapshot = str(SAMPLES / "snapshots/command.safetensors")
    arguments = [str(tmp_path / "base"), str(SAMPLES / "images"), str(target), *COMMAND_RUN]
    assert main(["train", *arguments, "--resume", snapshot]) == 0, capsys.readouterr().err
    said = capsys.readouterr().err
    assert f"step {STOPPED_AFTER + 1} of" in said and f"step {STOPPED_AFTER} of" not in said
    assert_nearly_equal(SparseDelta.load(target), "command_sd")


@pytest.mark.parametrize("name", NODE_RUNS)
def test_a_run_of_the_node_goes_on(comfy, output, name):
    from comfy.sd import load_diffusion_model_state_dict

    shapes = {weight: tensor.shape for weight, tensor in toy_models.sd15_unet_state_dict().items()}
    with torch.inference_mode():
        model = load_diffusion_model_state_dict(exact_weights(shapes), {"dtype": torch.float32})
    snapshot = output / f"sara_snapshots/run_00001_step{STOPPED_AFTER:07}.safetensors"
    snapshot.parent.mkdir()
    shutil.copyfile(SAMPLES / f"snapshots/{name}.safetensors", snapshot)
    inputs, options = NODE_RUNS[name]
    delta, loss = train(comfy, model, latents_and_captions(), **NODE_RUN, **inputs, **options, resume=snapshot.name)
    assert len(loss["loss"]) == NODE_RUN["steps"]
    assert_nearly_equal(delta, f"{name}_fp32")


@pytest.fixture
def files(server):
    """The files that the workflow names, as long as it runs."""
    kept = put_files(server.base)
    yield
    for path in (*kept, *(server.output / "checkpoints").glob("sampled*")):
        path.unlink()


@pytest.mark.parametrize("form", ["as the page saved it", "as the page queued it"])
def test_a_workflow_with_every_node_runs(server, files, form):
    info = server.client.object_info()
    if form == "as the page saved it":
        workflow = json.loads((SAMPLES / "workflow.json").read_text())
        prompt = ui_workflow.to_prompt(workflow, info)
        outputs = {node["id"]: [slot["type"] for slot in node["outputs"]] for node in workflow["nodes"]}
        for node in workflow["nodes"]:  # further outputs came after these
            saved = outputs[node["id"]]
            assert info[node["type"]]["output"][: len(saved)] == saved
    else:
        prompt = json.loads((SAMPLES / "prompt.json").read_text())
    assert {node["class_type"] for node in prompt.values()} >= NODES.keys() - CAME_LATER
    results = server.client.run(prompt)
    # Of several outputs the host runs those that it finds nothing wrong with.
    assert results.keys() >= {number for number, node in prompt.items() if info[node["class_type"]]["output_node"]}
    shown = {node["class_type"]: results[number] for number, node in prompt.items() if number in results}
    assert shown["SaRASave"]["text"][0].startswith("sara/sampled")
    assert shown["SaRABake"]["text"][0].startswith("checkpoints/sampled")
    assert "Saved as output/sara/sample-converted" in shown["SaRAConvert"]["text"][0]
