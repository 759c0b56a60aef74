"""What the HTTP interface answers, through requests as Starlette hands them over."""

import asyncio
import json
import time
from types import SimpleNamespace

import pytest
from PIL import Image

from sara_webui.api import routes
from sara_webui.training import hosts as training
from sara_webui.training.runner import Runner
from tests.webui.training.fake_host import FakeHost

HEADERS = {"host": "localhost:7860", "content-type": "application/json"}


class Request:
    """As much of a starlette.requests.Request as is looked at."""

    def __init__(self, body=b"", headers=HEADERS, client="127.0.0.1"):
        self.body, self.headers, self.client = body, headers, SimpleNamespace(host=client)

    async def stream(self):
        for start in range(0, len(self.body), 1000):
            yield self.body[start : start + 1000]


@pytest.fixture
def runner(tmp_path, monkeypatch):
    folder = tmp_path / "pictures" / "cats"
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64), (80, 40, 200)).save(folder / "a.png")
    found = Runner(FakeHost(tmp_path))
    monkeypatch.setattr(training, "runner", lambda: found)
    monkeypatch.setattr(training, "refusal", lambda: None)
    return found


def ask(method, path, given=None, **request):
    answer = {(verb, name): answer for verb, name, answer in routes.ROUTES}[method, path]
    body = request.pop("body", None)
    body = json.dumps(given or {}).encode() if body is None else body
    return asyncio.run(routes.answered(Request(body, **request), method, answer, {}))


def test_a_training_is_begun_followed_and_its_delta_named_without_a_path(runner):
    assert ask("GET", "status")[1]["phase"] is None
    settings = {"name": "style", "folder": "cats", "trigger": "x", "resolution": 64, "steps": 3, "density": 0.2}
    status, said, _ = ask("POST", "train", settings)
    assert status == 200 and said["name"] == "style"
    runner.wait()
    status, said, _ = ask("GET", "status")
    assert (status, said["phase"], said["delta"], said["step"]) == (200, "finished", "style", 3)
    assert len(said["losses"]) == 3 and str(runner.host.deltas) not in json.dumps(said)


@pytest.mark.parametrize("wanted", ["stop", "finish", "save", "sample"])
def test_without_a_training_nothing_can_be_asked_of_it(runner, wanted):
    assert ask("POST", wanted)[0] == 400


def test_a_training_is_stopped(runner):
    settings = {"name": "style", "folder": "cats", "trigger": "x", "resolution": 64, "steps": 100000, "density": 0.2}
    ask("POST", "train", settings)
    assert ask("POST", "train", settings)[1]["error"].startswith("'style' is being trained")
    while ask("GET", "status")[1]["step"] == 0 and not runner.last.is_over:
        time.sleep(0.01)
    assert ask("POST", "stop")[0] == 200
    runner.wait(60)
    said = ask("GET", "status")[1]
    assert (said["phase"], said["delta"]) == ("stopped", "style") and "is in style.safetensors" in said["message"]
    assert ask("POST", "stop", {"force": True})[0] == 400


@pytest.mark.parametrize(
    "given, said",
    [
        ({"folder": "../cats"}, "no folder"),
        ({"folder": "/etc"}, "no folder"),
        ({"folder": "cats", "class_folder": "../cats"}, "no folder"),
        ({"folder": "cats", "name": "../x"}, "a path"),
        ({"folder": "cats", "resume": "../x"}, "no snapshot"),
        ({"folder": ["cats"]}, "no folder"),
        ({"folder": "cats", "colour": 1}, "no setting colour"),
    ],
)
def test_names_are_no_paths_and_what_is_wrong_is_one_sentence(runner, given, said):
    status, answer, _ = ask("POST", "train", {"name": "style", **given})
    assert status == 400 and said in answer["error"] and "\n" not in answer["error"]
    assert runner.last is None


@pytest.mark.parametrize("body, status", [(b"{", 400), (b"[1]", 400), (b"\xff", 400), (b"[" * 9999, 400)])
def test_what_is_no_object_is_refused(runner, body, status):
    assert ask("POST", "train", body=body)[0] == status


def test_a_body_without_end_is_not_read(runner):
    assert ask("POST", "train", body=b" " * (routes.MOST_BYTES + 1))[0] == 413


def test_whoever_is_refused_starts_nothing(runner):
    assert ask("POST", "train", {"name": "style", "folder": "cats"}, client="8.8.8.8")[0] == 403
    assert ask("POST", "train", headers={**HEADERS, "origin": "https://evil.example"})[0] == 403
    assert runner.last is None


def test_what_nobody_expected_is_no_answer_of_its_insides(runner, monkeypatch):
    monkeypatch.setattr(Runner, "start", lambda *given: 1 / 0)
    status, said, _ = ask("POST", "train", {"name": "style", "folder": "cats"})
    assert status == 500 and "Zero" not in said["error"]


def test_everything_that_may_be_sent_is_listed(runner):
    said = ask("GET", "choices")[1]
    assert said["folders"] == ["cats"] and said["snapshots"] == []
    assert said["settings"]["steps"]["default"] == 500 and "AdamW" in said["settings"]["optimizer"]["choices"]
