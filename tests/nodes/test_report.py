"""The problem report of a real ComfyUI, and the command of its page that copies it."""

import json
import re
import urllib.request

import pytest

from devtools.comfyui.client import PromptError
from tests.core.report.test_report import fenced

BROKEN = "broken for the report.safetensors"
PRIVATE = "C:\\Users\\Jane Roe\\dogs"


def get(server, path):
    with urllib.request.urlopen(server.client.address + path) as answer:
        return answer.headers, answer.read().decode("utf-8")


@pytest.fixture
def failed(server, checkpoint):
    """A server in which the loading of a damaged delta has just failed."""
    file = server.output / "sara" / BROKEN
    file.write_bytes(b"no delta")
    loader = {"class_type": "SaRALoader", "inputs": {"sara_name": BROKEN, "strength": 0.25}}
    save = {"class_type": "SaRASave", "inputs": {
        "delta": ["1", 1], "filename_prefix": "sara/x", "values": "fp32", "title": PRIVATE,
    }}  # fmt: skip
    with pytest.raises(PromptError, match="SaRALoader"):
        server.client.run({"1": loader, "2": save})
    yield server
    file.unlink()


@pytest.mark.parametrize("path", ["/sara/report", "/api/sara/report"])
def test_the_last_run_and_its_error_are_told_without_names(failed, path):
    headers, text = get(failed, path)
    assert headers["Content-Type"].startswith("text/plain") and headers["Cache-Control"] == "no-store"
    host = "\n".join(fenced(text, "ComfyUI"))
    assert re.search(r"^version +[0-9.]+$", host, re.M) and "--cpu --port" in host and "comfyui-sara" in host
    assert str(failed.base) not in host and str(failed.port) not in host
    loader, save = fenced(text, "Settings of the last run")
    assert loader == f"SaRALoader: sara_name '{BROKEN}', strength 0.25"
    assert save.startswith("SaRASave: ") and "<user>" in save and "Jane" not in text
    error = fenced(text, "Last error")
    assert error[0].startswith("SaRALoader: ") and f"Cannot load '{BROKEN}'" in error[0]
    assert any("load.py" in line for line in error)
    assert any("SaRALoader" in line or "sara" in line.lower() for line in fenced(text, "Log"))


def test_what_a_host_does_not_tell_is_said(comfy, caplog):
    report = comfy.pack_module("nodes.host.report")
    section = report._section("Log", lambda: iter([][0]))
    assert section.lines == ["not known: IndexError: list index out of range"]
    assert "says nothing of 'Log'" in caplog.text


def test_the_page_offers_the_report(server):
    pack, = (path for path in json.loads(get(server, "/extensions")[1]) if path.endswith("/comfyui-sara/report.js"))
    script = get(server, pack)[1]
    address, = re.findall(r'fetchApi\("([^"]+)"', script)
    assert get(server, f"/api{address}")[1].startswith("## SaRA: problem report")
    name, = re.findall(r'id: "([^"]+)"', script)
    assert f'commands: ["{name}"]' in script
