"""What the page can know of a training, and ask of it, while it goes on and after."""

import asyncio
import json

import pytest
import torch

from tests.nodes.training.test_session import cancelled
from tests.support.toy_training import train

OPTIONS = {"steps": 4, "density": 2.0, "include": "time_embed", "snapshot_every": 0}


class Clock:
    """Time that passes only when somebody says so; what is to happen later is done on the way."""

    def __init__(self):
        self.now, self.later = 0.0, []

    def __call__(self):
        return self.now

    def after(self, seconds, call):
        self.later.append((self.now + seconds, call))

    def pass_by(self, seconds):
        self.now += seconds
        due = [call for when, call in self.later if when <= self.now]
        self.later = [(when, call) for when, call in self.later if when > self.now]
        for call in due:
            call()


@pytest.fixture
def runs(comfy, monkeypatch):
    module = comfy.pack_module("nodes.host.web.runs")
    monkeypatch.setattr(module, "_runs", {})
    return module


@pytest.fixture
def live(runs):
    runs._runs["1f"] = runs.LiveRun(runs.RunState("1f", None, "5", "a workflow"))
    return runs._runs["1f"]


class Server:
    """Notes what is sent. client_id: who has queued the prompt"""

    client_id = "me"

    def __init__(self):
        self.events, self.texts = [], []

    def send_sync(self, event, data, sid=None):
        json.dumps(data, allow_nan=False)
        if event == "sara.run":
            self.events.append(data)

    def send_progress_text(self, text, node_id, sid=None):
        self.texts.append((text, sid))


@pytest.fixture
def server(runs, monkeypatch):
    server = Server()
    monkeypatch.setattr(runs.PromptServer, "instance", server, raising=False)
    # Nodes that are called one by one have no hidden inputs.
    monkeypatch.setattr(pack_progress(runs), "_node_id", lambda node_class: "5")
    return server


def pack_progress(runs):
    import sys

    return sys.modules[runs.__name__.replace("web.runs", "progress")]


def last_run(runs):
    state = list(runs._runs.values())[-1].whole()
    json.dumps(state, allow_nan=False)
    return state


def test_at_most_four_events_a_second_and_the_last_change_always(comfy):
    clock, sent = Clock(), []
    pulse = comfy.pack_module("nodes.host.web.pulse").Pulse(lambda: sent.append(clock.now), 0.25, clock, clock.after)
    for _ in range(1000):
        pulse.want()
        clock.pass_by(0.01)
    clock.pass_by(60)
    assert 30 <= len(sent) <= 42
    assert all(later - earlier >= 0.25 for earlier, later in zip(sent, sent[1:]))
    before = len(sent)
    clock.pass_by(60)
    assert len(sent) == before  # nothing when nothing happens
    pulse.want()
    pulse.want()
    pulse.now()
    clock.pass_by(60)
    assert len(sent) == before + 2


def test_an_event_has_the_points_since_the_last_one(live, server):
    for step in range(1, 4):
        live.add_loss(step, step / 2)
    live._send()
    live.add_loss(4, float("nan"))
    live.add_loss(5, 2.5)
    live._send()
    first, second = server.events
    assert first["new_losses"] == [[1, 0.5], [2, 1.0], [3, 1.5]] and first["first_new"] == 0
    assert second["new_losses"] == [[5, 2.5]] and second["first_new"] == 3 and "losses" not in second


def test_what_is_no_number_is_nothing(live):
    live.tell(rate=float("nan"), memory={"now": float("inf")}, marks=[{"step": 1, "kind": "snapshot"}])
    state = live.whole()
    assert state["rate"] is None and state["memory"] == {"now": None} and state["marks"][0]["step"] == 1


def test_a_long_curve_is_thinned_from_its_first_to_its_last_point(live):
    for step in range(1, 5001):
        live.add_loss(step, 1.0)
    state, kept = live.whole(), live.kept()
    assert (len(state["losses"]), len(kept["losses"]), state["points"]) == (1000, 200, 5000)
    assert state["losses"][0][0] == kept["losses"][0][0] == 1
    assert state["losses"][-1][0] == kept["losses"][-1][0] == 5000


def test_a_workflow_has_the_newest_run_of_each_of_its_nodes(runs):
    for number, (node, workflow) in enumerate([("5", "a"), ("5", "a"), ("6", "a"), ("5", "b"), ("5", None)]):
        runs._runs[str(number)] = runs.LiveRun(runs.RunState(str(number), None, node, workflow))
    assert [run["run"] for run in runs._list({"workflow": "a"})["runs"]] == ["2", "1"]
    assert [run["run"] for run in runs._list({})["runs"]] == ["4", "3", "2", "1", "0"]


def test_the_last_runs_are_remembered(runs):
    class Node:
        hidden = None

    for _ in range(runs.MOST_RUNS + 3):
        with runs.followed(Node) as run:
            pass
    assert len(runs._runs) == runs.MOST_RUNS and run.state.run in runs._runs


def test_what_cannot_be_asked_of_a_run_is_refused_in_a_sentence(runs, live):
    with pytest.raises(Exception, match="draws no pictures: connect SaRA Train Samples"):
        runs._requested({"run": "1f"}, "sample")
    assert runs._requested({"run": "1f"}, "finish") == {"accepted": True}
    assert live.was_asked_to("finish") and not live.was_asked_to("finish")
    live.tell(phase="stopped")
    with pytest.raises(Exception, match="This training is over"):
        runs._requested({"run": "1f"}, "save")
    with pytest.raises(Exception, match="not remembered any more"):
        runs._requested({"run": "2f"}, "save")


def test_a_training_tells_how_it_goes_and_how_it_ended(comfy, model, data, untouched, output, runs, server):
    delta, _ = train(comfy, model, data, **OPTIONS)
    state = last_run(runs)
    assert state["phase"] == "finished" and state["step"] == state["steps"] == 4 and len(state["losses"]) == 4
    assert state["rate"] == 1e-3 and state["memory"]["total"] >= state["memory"]["now"] > 0
    assert state["estimate"]["english"].startswith("Memory: ")
    assert {"step": 2, "kind": "adjustment"} in state["marks"] and {"step": 4, "kind": "snapshot"} in state["marks"]
    end = state["end"]
    assert (end["kind"], end["trained"], end["snapshot"]) == ("finished", delta.nnz, "run 1, step 4")
    assert end["delta"].replace("\\", "/") == "unsaved/run_00001.safetensors" and end["error"] is None
    said = [sentence["english"] for sentence in end["sentences"]]
    assert said[0].startswith(f"Trained {delta.nnz:,} weights in 4 steps, in 0:")
    assert said[-1] == "To train on, choose 'run 1, step 4' under resume, and more than 4 steps."
    assert server.events[-1]["end"] == end
    assert server.texts[-1] == (" ".join(said), "me")


def test_a_delta_that_was_saved_is_the_one_to_draw_with(comfy, model, data, untouched, output, runs, server):
    delta, _ = train(comfy, model, data, **OPTIONS)
    before = last_run(runs)["end"]["delta"]
    comfy.execute("SaRASave", delta=delta, filename_prefix="sara/mine", values="fp32")
    end = last_run(runs)["end"]
    assert before.startswith("unsaved") and end["delta"] == "mine_00001_.safetensors"
    said = [one["english"] for one in end["sentences"]]
    assert "Saved as output/sara/mine_00001_.safetensors." in said and not any("Save it" in text for text in said)
    assert server.events[-1]["end"] == end


def test_a_cancelled_training_says_on_the_node_what_is_kept(comfy, model, data, untouched, output, runs, server):
    cancelled(comfy, model, data, 3, **OPTIONS)
    end = last_run(runs)["end"]
    assert end["kind"] == "stopped" and end["snapshot"] == "run 1, step 2"
    assert end["delta"] == "stopped_run_00001.safetensors"
    assert end["sentences"][0]["english"].startswith("Stopped after 2 of 4 steps")
    text, client = server.texts[-1]
    assert "What was trained in 2 steps is in output/sara/stopped_run_00001.safetensors" in text and client == "me"


def test_an_error_is_the_runs_end(comfy, model, data, untouched, output, runs, server):
    with pytest.raises(Exception, match="adjust_at"):
        train(comfy, model, data, **OPTIONS, adjust_at="0")
    state = last_run(runs)
    assert state["phase"] == state["end"]["kind"] == "failed" and state["end"]["error"].startswith("adjust_at is '0'")
    (said,) = state["end"]["sentences"]  # which a page can say in its own language
    assert said["english"] == state["end"]["error"] and said["key"].startswith("{setting} is '{text}'")
    assert said["values"] == {"setting": "adjust_at", "text": "0"}


def test_a_page_that_shows_runs_gets_no_text(comfy, model, data, untouched, output, runs, server):
    runs._list({"client": "me"})
    train(comfy, model, data, **OPTIONS)
    runs._pages.clear()
    assert server.texts == [] and server.events


@pytest.mark.parametrize("wanted", ["save", "finish"])
def test_what_the_page_asks_for_is_done_within_a_step(comfy, model, data, untouched, output, runs, server, wanted):
    batches = comfy.pack_module("sara_core.data.denoising_loss").DenoisingLoss
    original, calls = batches.__call__, iter(range(1, 100))

    def ask_in_time(self):
        if next(calls) == 2:
            (run,) = runs._runs
            runs._requested({"run": run}, wanted)
        return original(self)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(batches, "__call__", ask_in_time)
        delta, _ = train(comfy, model, data, **OPTIONS)
    state = last_run(runs)
    if wanted == "save":
        assert (output / "sara" / "unsaved" / "run_00001_step2.safetensors").is_file()
        assert "run_00001_step2.safetensors" in state["saved"]["english"]
        assert state["step"] == 4 and state["end"]["kind"] == "finished"
        assert {"step": 2, "kind": "snapshot"} in state["marks"]
    else:
        assert state["step"] == 2 and state["end"]["kind"] == "early" and state["phase"] == "finished"
        said = json.loads(delta.metadata["sara.training"])
        assert said["steps"] == 2 and said["planned_steps"] == [4]
        whole, _ = train(comfy, model, data, **OPTIONS, resume=state["end"]["snapshot"])
        assert json.loads(whole.metadata["sara.training"])["steps"] == 4


def test_pictures_are_drawn_before_the_first_step_and_when_the_page_asks(
    comfy, model, data, untouched, output, runs, server, monkeypatch
):
    monkeypatch.setattr(runs, "SECONDS_BETWEEN_EVENTS", 0)  # or what is quickly over would not be told
    samples = comfy.pack_module("nodes.host.training.samples")
    monkeypatch.setattr(samples.comfy.sample, "sample", lambda *_, **__: torch.zeros(1))
    drawn, = comfy.execute("SaRATrainSamples", positive=data[1][:2], vae=Vae(), every=100, steps=1).outputs
    after_step = comfy.pack_module("nodes.host.training.session").NodeHost.after_step

    def ask_in_time(host, step):
        if step == 3:
            (run,) = runs._runs
            runs._requested({"run": run}, "sample")
        after_step(host, step)

    monkeypatch.setattr(comfy.pack_module("nodes.host.training.session").NodeHost, "after_step", ask_in_time)
    train(comfy, model, data, **OPTIONS, samples=drawn)
    shown = last_run(runs)["samples"]
    assert shown["captions"] == ["", ""]
    assert [column["step"] for column in shown["columns"]] == [0, 3]
    first = shown["columns"][0]["files"][1]
    assert first == {"filename": "step_0000000_02.png", "subfolder": "sara_samples/run_00001", "type": "output"}
    assert "Drawing the pictures of step 0" in [(event["message"] or {}).get("english") for event in server.events]


class Vae:
    latent_channels = 4

    def decode(self, latent):
        return torch.zeros(1, 8, 8, 3)


def test_the_words_behind_a_conditioning(comfy):
    text_behind = comfy.pack_module("nodes.host.prompt_texts").text_behind
    prompt = {
        "1": {"inputs": {"text": "a cat", "clip": ["9", 1]}}, "2": {"inputs": {"conditioning": ["1", 0]}},
        "3": {"inputs": {"text": ["4", 0]}}, "4": {"inputs": {"value": "a dog"}}, "5": {"inputs": {"text": ["5", 0]}},
        "6": {"inputs": {"latents": ["1", 0]}},
        **{f"s{number}": {"inputs": {"positive": [str(number), 0]}} for number in range(1, 8)},
    }  # fmt: skip
    found = [text_behind(prompt, f"s{number}", "positive") for number in range(1, 8)]
    assert found == ["a cat", "a cat", "a dog", "a dog", "", "", ""]
    assert text_behind(None, "1", "text") == text_behind({"1": []}, "1", "text") == ""


@pytest.mark.parametrize("name, is_accepted", [
    ("none", True), ("run 7, step 27", True), ("run_00007_step0000027.safetensors", True), ("mine.safetensors", True),
    ("run 7, step 28", False), ("../mine.safetensors", False), ("run 007, step 0027", True),
])  # fmt: skip
def test_a_snapshot_is_chosen_by_number_or_by_the_name_of_its_file(comfy, output, name, is_accepted):
    (output / "sara_snapshots").mkdir()
    for file in ("run_00007_step0000027.safetensors", "mine.safetensors"):
        (output / "sara_snapshots" / file).touch()
    offered = comfy.node_class("SaRATrain").INPUT_TYPES()["optional"]["resume"][1]["options"]
    assert sorted(offered) == ["mine.safetensors", "none", "run 7, step 27"]
    prompt = {
        "1": {"class_type": "SaRATrain", "inputs": {"resume": name}},
        "2": {"class_type": "SaRASave", "inputs": {"delta": ["1", 0], "filename_prefix": "sara/x", "values": "fp32"}},
    }
    execution = comfy._execution
    _, _, _, errors = asyncio.run(execution.validate_prompt("a prompt", prompt, None))
    said = [error for error in errors["1"]["errors"] if error["extra_info"].get("input_name") == "resume"]
    assert bool(said) is not is_accepted
    if said:
        assert f"There is no snapshot '{name}'" in said[0]["details"]
