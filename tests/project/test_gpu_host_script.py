"""benchmarks/gpu_host.py without a GPU: every step it has works, its checks can fail, and it outlives its server."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from benchmarks import gpu_host
from benchmarks.gpu_host_ import files, prompts, steps
from benchmarks.gpu_host_.site import Site
from devtools.comfyui.install import ROOT

# What takes a processor minutes: all but the trainings of other kinds.
QUICK = ("first picture", "strengths", "Cancel", "LoRA behind and before", "bake", "memory given back")


@pytest.fixture(scope="module")
def small_run(host, tmp_path_factory):
    """(what was printed, the report, its folder) of the script with a tiny model on the processor"""
    folder = tmp_path_factory.mktemp("gpu_host")
    command = [
        sys.executable, "-m", "benchmarks.gpu_host", "--comfyui", str(host.folder), "--device", "cpu",
        "--layout", "small", "--modes", "plain", "--json", str(folder / "report.json"), "--steps", *QUICK,
        "--minutes", "30", "--step-seconds", "200",
    ]  # fmt: skip
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout, json.loads((folder / "report.json").read_text(encoding="utf-8")), folder


def test_every_step_is_ok_and_written_down(small_run):
    printed, report, folder = small_run
    assert [(result["mode"], result["step"]) for result in report["results"]] == [("plain", step) for step in QUICK]
    for result in report["results"]:
        assert result["ok"] and result["checks"] and all(result["checks"].values()), result
    assert len(report["servers"]["plain"]) == 1 and report["servers"]["plain"][0]["system"]["pytorch_version"]
    assert "got prompt" in (folder / "report-plain.log").read_text(encoding="utf-8")
    assert f"{len(QUICK)} of {len(QUICK)} steps are ok." in printed
    assert "at step" in report["results"][QUICK.index("Cancel")]["figures"]


@pytest.fixture(scope="module")
def site(host, tmp_path_factory):
    base = tmp_path_factory.mktemp("site")
    shared = base / "files"
    gpu_host.make_files(host, "small", shared)
    found = Site(host, base / "server", shared, "cpu", (), 300)
    yield found
    found.stop()


def test_the_probe_sees_a_single_other_bit(site):
    """Of a file that has one element changed, and of one whose dtype is another."""
    site.ensure()
    work = steps.Work(site, steps.Settings("small", 64, 1, 60), dtype="float32")
    expected = work.expected()
    assert steps.same_weights(work.probe(expected=expected), "same") == {"same": True}
    weights = safetensors.torch.load_file(expected)
    key = next(name for name, weight in weights.items() if weight.dim() == 2)
    weights[key].view(torch.int32)[3, 5] ^= 1
    changed = expected.with_name("changed.safetensors")
    safetensors.torch.save_file(weights, changed)
    found = work.probe(expected=changed)
    assert found["different"] == 1 and steps.same_weights(found, "same") == {"same": False}
    safetensors.torch.save_file({name: weight.half() for name, weight in weights.items()}, changed)
    assert steps.same_weights(work.probe(expected=changed), "same") == {"same": False}


def test_a_lost_server_is_told_and_started_again(site):
    """A step whose server dies, and one whose prompt takes too long: both say so, and the next has a server."""
    report = SimpleNamespace(data={"servers": {}})
    work = steps.Work(site, steps.Settings("small", 64, 1, 60))

    def dies(work):
        work.site.server.kill()
        work.probe()

    def hangs(work):
        work.settings.seconds = 0.5
        work.run(prompts.training("pictures", 64, steps.widgets(steps.ENDLESS)))

    files.write_pictures(site.base / "input" / "pictures", 64)
    for step, said in ((dies, "refused"), (hangs, "not done after")):
        result = gpu_host.result_of(step, work, "plain", report)
        assert not result["ok"] and said in result["exception"] and "The end of the log" in result["exception"]
        assert site.server is None or not site.server.is_running
    assert "Fatal Python error: Aborted" in site.log()
    result = gpu_host.result_of(lambda work: {"checks": {"it answers": True}}, work, "plain", report)
    assert result["ok"] and len(report.data["servers"]["plain"]) >= 2


def test_a_step_without_what_it_needs_is_not_run():
    work = steps.Work(SimpleNamespace(ensure=lambda: 0.0), steps.Settings("small", 64, 1, 60))
    result = gpu_host.result_of(lambda work: work.expected(), work, "plain", None)
    assert not result["ok"] and "first step failed" in result["not_run"]


def test_a_training_that_changed_nothing_is_not_sound():
    entry = SimpleNamespace(values=torch.zeros(4))
    delta = SimpleNamespace(entries={"weight": entry}, nnz=4)
    run = {"losses": [[1, 0.5], [2, 0.4]], "phase": "finished"}
    assert not all(steps.sound(delta, run).values())
    entry.values = torch.ones(4)
    assert all(steps.sound(delta, run).values())
    assert not all(steps.sound(delta, {**run, "losses": [[1, float("nan")]]}).values())
    assert not all(steps.sound(delta, {**run, "phase": "failed"}).values())


def test_a_model_that_is_not_as_before_is_told():
    found = {"different": 0, "missing": [], "of_other_kind": [], "elements": 10}
    picture = np.zeros((2, 2, 3))
    work = SimpleNamespace(
        before=picture, picture=lambda: picture + 1, probe=lambda expected: found, expected=lambda: None
    )
    assert list(steps.Work.as_before(work).values()) == [False, True]
    work.picture = lambda: picture
    assert all(steps.Work.as_before(work).values())
