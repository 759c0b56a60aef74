"""Training in a WebUI's process, on a host that is none: what it leaves, however it ends, and what it trains."""

import json
import time

import pytest
import torch
from PIL import Image

from sara_core import SparseDelta, TrainingError
from sara_webui.training.places import snapshot_names
from sara_webui.training.progress import Progress
from sara_webui.training.runner import Runner
from sara_webui.training.settings import read_values
from tests.webui.training.fake_host import FakeHost, digest

SHORT = {
    "name": "style", "folder": "cats", "resolution": 64, "steps": 6, "density": 0.2, "learning_rate": 1e-2,
    "trigger": "thing", "batch_size": 2, "snapshot_every": 0,
}  # fmt: skip


@pytest.fixture
def host(tmp_path):
    folder = tmp_path / "pictures" / "cats"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (80, 64), (80 * number, 40, 200 - 60 * number)).save(folder / f"{number}.png")
    (folder / "1.txt").write_text("a (large) cat BREAK")
    return FakeHost(tmp_path)


def trained(host, **changes):
    runner = Runner(host)
    progress = runner.start({**SHORT, **changes})
    runner.wait()
    return progress


def entries(path):
    delta = SparseDelta.load(path)
    return delta, {name: (entry.indices, entry.values) for name, entry in delta.entries.items()}


def test_a_training_leaves_a_delta_of_comfyuis_names_and_the_model_as_it_was(host):
    before = digest(host.unet)
    progress = trained(host, prompts="a cat\na dog", sample_every=3, snapshot_every=2)
    assert progress.phase == "finished", progress.message
    assert digest(host.unet) == before
    assert progress.delta == host.deltas / "style.safetensors" and host.refreshed == 1
    delta, _ = entries(progress.delta)
    assert "diffusion_model.input_blocks.0.weight" in delta.entries
    assert delta.metadata["sara.base_name"] == "fake.safetensors" and "sara.base_identity" in delta.metadata
    assert json.loads(delta.metadata["sara.training"])["resolution"] == 64
    assert "activations" in progress.estimate, "the memory is foretold"
    assert host.steps[-1] == (6, 6) and len(progress.losses.points) == 6
    assert sorted(progress.drawn) == [0, 3, 6] and all(len(files) == 2 for files in progress.drawn.values())
    assert snapshot_names(host) == [] and not list((host.outputs / "sara" / "snapshots").iterdir())


def test_the_model_with_the_delta_is_the_one_that_training_ended_with(host, monkeypatch):
    ended_with = {}
    from sara_core.backward.store import Store

    restore = Store.restore

    def noting(store):
        ended_with.update({name: weight.clone() for name, weight in host.unet.state_dict().items()})
        restore(store)

    monkeypatch.setattr(Store, "restore", noting)
    progress = trained(host)
    weights = {f"diffusion_model.{name}": weight for name, weight in host.unet.state_dict().items()}
    SparseDelta.load(progress.delta).apply_(weights)
    assert all(torch.equal(host.unet.state_dict()[name], weight) for name, weight in ended_with.items())


def test_gradient_checkpointing_changes_no_number(host):
    _, with_it = entries(trained(host, name="with", gradient_checkpointing=True).delta)
    _, without = entries(trained(host, name="without", gradient_checkpointing=False).delta)
    assert all(torch.equal(with_it[name][1], without[name][1]) for name in without)


def test_a_stopped_training_keeps_what_it_trained_and_goes_on_to_the_same_delta(host):
    before = digest(host.unet)
    _, whole = entries(trained(host, name="whole").delta)
    host.model.forwards, host.interrupted_after = 0, 3
    stopped = trained(host)
    assert stopped.phase == "stopped" and "Stopped after step 3 of 6" in stopped.message
    assert digest(host.unet) == before
    assert snapshot_names(host) == ["style_step0000003"] and (host.deltas / "style.safetensors").exists()
    assert stopped.delta == host.deltas / "style.safetensors"
    host.interrupted_after = None
    runner = Runner(host)
    progress = runner.start({"resume": "style_step0000003"})
    runner.wait()
    assert progress.phase == "finished", progress.message
    _, resumed = entries(progress.delta)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name][1], whole[name][1]) for name in whole)
    assert snapshot_names(host) == []


@pytest.mark.parametrize("error", [ValueError("broken"), RuntimeError("CUDA out of memory")])
def test_an_error_in_the_middle_leaves_the_model_as_it_was_and_says_what_is_kept(host, monkeypatch, error):
    before, predict = digest(host.unet), host.model.predict

    def failing(*arguments):
        if host.model.forwards == 4:
            raise error
        return predict(*arguments)

    monkeypatch.setattr(host.model, "predict", failing)
    progress = trained(host)
    assert progress.phase == "failed" and digest(host.unet) == before
    said = " ".join([progress.message, *progress.warnings.values()])
    assert said.count("What was trained in 4 steps is in style.safetensors.") == 1
    assert snapshot_names(host) == ["style_step0000004"] and progress.as_json()["delta"] == "style"
    assert host.entered == ["working", "not working"]


def test_the_delta_that_is_told_of_is_the_one_that_was_written(host):
    finished = trained(host)
    host.model.forwards, host.interrupted_after = 0, 3
    assert trained(host).as_json()["delta"] == "style_stopped", "a stopped one replaces none"
    assert finished.as_json()["delta"] == "style"
    host.interrupted_after = 0
    assert trained(host).as_json()["delta"] is None, "no step was done, so there is none"


def test_a_delta_that_was_asked_for_in_between_is_told_of_at_once(host, monkeypatch):
    told, show_step = [], host.show_step

    def asking(step, steps):
        show_step(step, steps)
        told.append(runner.last.as_json()["delta"])
        if step == 2:
            runner.ask("save")

    monkeypatch.setattr(host, "show_step", asking)
    runner = Runner(host)
    runner.start(SHORT)
    runner.wait()
    assert told == [None, None, "style", "style", "style", "style"]


def test_class_pictures_are_trained_beside_the_others(host):
    folder = host.pictures / "animals"
    folder.mkdir()
    Image.new("RGB", (64, 64), (200, 0, 0)).save(folder / "a.png")
    (folder / "a.txt").write_text("an animal of another kind, with a longer caption")
    _, alone = entries(trained(host, name="alone").delta)
    progress = trained(host, name="beside", class_folder="animals", caption_dropout=0.5)
    assert progress.phase == "finished", progress.message
    delta, beside = entries(progress.delta)
    assert any(not torch.equal(beside[name][1], alone[name][1]) for name in alone)


def test_a_class_caption_keeps_the_model_near_itself(host):
    _, alone = entries(trained(host, name="alone").delta)
    progress = trained(host, name="near", class_caption="an animal", prior_weight=100.0)
    assert progress.phase == "finished", progress.message
    _, near = entries(progress.delta)
    sizes = [sum(float(values.square().sum()) for _, values in one.values()) for one in (near, alone)]
    assert sizes[0] < 0.9 * sizes[1]
    both = trained(host, name="both", class_caption="an animal", class_folder="cats")
    assert both.phase == "failed" and "leave one of them empty" in both.message


def test_what_was_asked_for_is_done(host):
    progress = Progress("style", read_values({name: value for name, value in SHORT.items() if name != "folder"}))
    progress.ask("finish")
    from sara_webui.training.train import Folders, train

    train(host, progress, Folders(host.pictures / "cats"))
    assert progress.step == 1 and (host.deltas / "style.safetensors").exists()
    assert snapshot_names(host) == ["style_step0000001"], "an early end can be gone on with"


def test_when_a_training_says_that_it_is_over_the_next_may_begin(host):
    runner, over = Runner(host), []
    host.refresh = lambda: over.append(runner.last.is_over)
    for name in ("first", "second"):
        progress = runner.start({**SHORT, "name": name, "steps": 1})
        while not progress.is_over:
            time.sleep(0.001)
    runner.wait()
    assert over == [False, False] and progress.phase == "finished"


def test_one_training_at_a_time(host, monkeypatch):
    import threading

    from sara_webui.training import runner as module

    goes_on = threading.Event()
    monkeypatch.setattr(module, "train", lambda *arguments: goes_on.wait(10))
    runner = Runner(host)
    runner.start(SHORT)
    with pytest.raises(TrainingError, match="'style' is being trained"):
        runner.start(SHORT)
    goes_on.set()
    runner.wait()
    runner.start(SHORT)
    runner.wait()


@pytest.mark.parametrize(
    "given, said",
    [
        ({"folder": "../cats"}, "no folder '../cats' of pictures. There are cats"),
        ({"folder": "/etc"}, "no folder '/etc'"),
        ({"folder": ""}, "Choose a folder"),
        ({"resume": "../x"}, "no snapshot '../x'"),
        ({"name": "a/b"}, "a path"),
        ({"name": ""}, "Give the delta a name"),
        ({"steps": 0}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"optimizer": "Lion"}, "optimizer is 'Lion'"),
        ({"colour": "red"}, "no setting colour"),
        ({"prompts": "x\n" * 9}, "9 prompts"),
    ],
)
def test_what_is_wrong_is_said_before_anything_begins(host, given, said):
    with pytest.raises(Exception, match=said):
        Runner(host).start({**SHORT, **given})
    assert host.entered == []


def test_what_the_host_refuses_is_said(host):
    host.refused = "Not today."
    progress = trained(host)
    assert (progress.phase, progress.message) == ("failed", "Not today.") and host.entered[-1] == "not working"
    assert trained(host, name="another").phase == "failed", "and the next one may be asked for"
