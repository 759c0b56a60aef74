"""A problem report says what helps, is one Markdown text whatever it is made of, and names nobody."""

import re
from pathlib import Path

import pytest
import torch

from sara_core import SparseDelta, SparseEntry
from sara_core.__main__ import main
from sara_core.report import machine
from sara_core.report.privacy import Privacy
from sara_core.report.report import Section, report

ROOT = Path(__file__).resolve().parents[3]
JANE = Privacy(["C:\\Users\\Jane Roe"], ["Jane Roe", "janeroe"], ["janes-box"])


def fenced(text, title):
    """The lines of one part, as Markdown takes them."""
    lines = text.splitlines()
    fence, = re.findall("^`+", lines[lines.index(f"### {title}") + 1])
    start = lines.index(f"### {title}") + 2
    end = next(number for number in range(start, len(lines)) if re.fullmatch(f"{fence}`* *", lines[number]))
    return lines[start:end]


@pytest.fixture
def delta(tmp_path):
    """A file whose metadata say more than they should."""
    entry = SparseEntry(torch.tensor([1, 5], dtype=torch.int32), torch.tensor([0.5, -0.5]), (2, 4))
    metadata = {
        "sara.training": '{"steps": 400, "data": "C:\\\\Users\\\\Jane Roe\\\\dog"}', "sara.base_name": "\\\\NAS\\m\\x",
        "modelspec.author": "JaneRoe", "C:/users/jane roe/key": "x\n````\n### Versions\n@everyone\x1b[2J\u202e",
    }  # fmt: skip
    SparseDelta({"diffusion_model.a": entry}, metadata).save(tmp_path / "JANEROE_dog.safetensors")
    return tmp_path / "JANEROE_dog.safetensors"


def test_versions_and_machine_are_told():
    text = report()
    versions = dict(line.split(maxsplit=1) for line in fenced(text, "Versions"))
    assert versions["torch"] == torch.__version__.split("+")[0] or versions["torch"] == torch.__version__
    assert {"sara_core", "Python", "numpy", "safetensors"} <= versions.keys()
    assert f'version = "{versions["sara_core"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    told = "\n".join(fenced(text, "Machine"))
    assert all(re.search(rf"^{name} +\S", told, re.M) for name in ("system", "processor", "memory", "GPU 0"))


def test_a_deltas_settings_are_told_without_names(delta):
    text = report(delta=delta, privacy=JANE)
    lines = fenced(text, "Delta")
    assert lines[0].startswith("<user>_dog.safetensors, ") and "2 changes in 1 weights" in lines[1]
    told = "\n".join(lines)
    assert "steps 400, data ~\\dog" in told and "\\\\<computer>\\m\\x" in told and "author" in told
    assert not re.search("jane|nas", text, re.I)


def test_what_a_file_says_is_not_taken_for_markdown(delta):
    lines = fenced(report(delta=delta, privacy=JANE), "Delta")
    told, = (line for line in lines if "@everyone" in line)
    assert "@everyone\ufffd[2J\ufffd" in told and "### Versions" in told and "```" not in told


@pytest.mark.parametrize("content", [None, b"no delta"])
def test_a_delta_that_cannot_be_read_is_told(tmp_path, content):
    path = tmp_path / "x.safetensors"
    if content:
        path.write_bytes(content)
    line, = fenced(report(delta=path), "Delta")
    assert line.startswith("x.safetensors cannot be read: Cannot load")


def test_a_host_adds_what_it_knows():
    log = Section("Log", ["at C:\\Users\\jane roe\\a", "two\nlines\ud800"])
    text = report([log, Section("Nothing", [])], None, JANE)
    assert fenced(text, "Log") == ["at ~\\a", "two", "lines\ufffd"] and "Nothing" not in text
    text.encode()


def test_of_long_texts_the_end_is_kept():
    lines = fenced(report([Section("Log", ["begin", *map(str, range(1000)), "x" * 10**6])]), "Log")
    assert lines[:2] == ["(902 lines before these)", "901"] and lines[-1] == "x" * 1000 and len(lines) == 101


def test_a_broken_driver_is_told(monkeypatch):
    def broken():
        raise RuntimeError("The NVIDIA driver on your system is too old")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    assert machine.machine()["GPU 0"] == "torch cannot use it: The NVIDIA driver on your system is too old"


def test_gpus_are_named_with_their_memory(monkeypatch):
    class Properties:
        name, total_memory = "NVIDIA Toy 1", 24 << 30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Properties)
    found = machine.machine()
    assert found["GPU 1"].startswith("NVIDIA Toy 1, 24 GiB, ") and "GPU 2" not in found


def test_without_its_files_beside_it_the_library_still_has_a_version(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    assert re.fullmatch(r"unknown|[0-9][0-9a-z.]*", machine.own_version())
    # Another project's, in whose folder the library has been copied.
    (tmp_path / "pyproject.toml").write_text('name = "other"\nversion = "9.9"\n')
    assert machine.own_version() != "9.9"


def test_on_the_command_line(delta, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_a-token-that-nobody-must-see")
    monkeypatch.setattr("getpass.getuser", lambda: "JaneRoe")
    assert main(["report", str(delta)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("## SaRA: problem report") and fenced(said.out, "Delta") and not said.err
    assert "hf_a-token" not in said.out and "janeroe" not in said.out.casefold()
    assert main(["report"]) == 0 and "### Delta" not in capsys.readouterr().out
