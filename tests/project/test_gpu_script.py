"""benchmarks/gpu.py without a GPU: its models are the real ones, its checks can fail, and it outlives what it runs."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_ import (
    model_checks, route_checks, steps as step_items, unet,
)  # fmt: skip
from benchmarks.gpu_.tables import tables
from benchmarks.lib import models
from devtools.comfyui.install import ROOT
from sara_core.backward import attach as attachment, weight_gradient
from sara_core.backward.store import Store

FEW_LAYERS = ("Linear", "Conv2d, 4 groups, circular")


def diffusers_unet(name):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**{"sd15": models.SD15, "sdxl": models.SDXL}[name])


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_unets_have_the_parameters_of_the_real_ones(name):
    with torch.device("meta"):
        models = [unet.UNet(unet.LAYOUTS[name]), diffusers_unet(name)]
    ours, real = ({key: tensor.shape for key, tensor in model.state_dict().items()} for model in models)
    assert ours == real
    kinds = [{key: type(module).__name__ for key, module in model.named_modules()
              if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))} for model in models]  # fmt: skip
    assert kinds[0] == kinds[1]


NARROW = {
    "sd15": (
        {**models.SMALL, "block_out_channels": (32, 64), "cross_attention_dim": 48, "attention_head_dim": 4},
        unet.TINY,
    ),
    "sdxl": (
        {**models.SDXL, "block_out_channels": (32, 64, 64), "transformer_layers_per_block": (1, 1, 2),
         "attention_head_dim": (2, 4, 4), "cross_attention_dim": 48, "projection_class_embeddings_input_dim": 1556},
        unet.Layout((32, 64, 64), (0, 1, 2), 2, (2, 4, 4), 48, pooled=20, linear=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NARROW)
def test_the_unets_compute_what_the_real_ones_do(name):
    from diffusers import UNet2DConditionModel

    config, layout = NARROW[name]
    torch.manual_seed(0)
    real, ours = UNet2DConditionModel(**config).double(), unet.UNet(layout).double()
    ours.load_state_dict(real.state_dict())
    sample, timestep, context, *sizes = unet.random_unet_inputs(layout, 16, 2, torch.float64, "cpu")
    added = {"text_embeds": sizes[0], "time_ids": sizes[1]} if sizes else None
    expected = real(sample, timestep, context, added_cond_kwargs=added).sample
    for checkpointing in (False, True):
        ours.checkpointing = checkpointing
        torch.testing.assert_close(ours(sample, timestep, context, *sizes), expected, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """(what was printed, the report) of the whole script in its small mode"""
    target = tmp_path_factory.mktemp("gpu") / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--small", "--json", str(target)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout, json.loads(target.read_text(encoding="utf-8"))


def test_every_check_runs_and_is_ok(small_run):
    _, report = small_run
    checks = [result for result in report["results"] if result["part"] == "checks"]
    expected = set(model_checks.items("cpu", True)) | set(model_checks.gradient_items("cpu", True))
    for dtype in route_checks.DTYPES:
        expected |= set(route_checks.items(dtype, "cpu", True))
    assert {check["item"] for check in checks} == expected == set(report["seconds"]) - {
        result["item"] for result in report["results"] if result["part"] == "steps"
    }
    assert all(check["ok"] and check["error"] <= check["limit"] for check in checks)


def test_every_method_is_measured_in_every_configuration(small_run):
    printed, report = small_run
    steps = [result for result in report["results"] if result["part"] == "steps"]
    assert {(step["configuration"], step["name"]) for step in steps} == {
        (step_items.configuration_name(configuration), name)
        for configuration in step_items.SMALL_CONFIGURATIONS for name, *_ in step_items.ORDER
    }  # fmt: skip
    assert all(len(step["steps"]) >= step_items.FEWEST_STEPS and min(step["steps"]) > 0 for step in steps)
    trained = {step["name"]: step["trained_elements"] for step in steps}
    assert (trained["floor"], trained["SaRA 0.6 %"], trained["SaRA 5.8 %"]) == (0, *step_items.ELEMENTS["tiny"])
    assert all(trained[name] > 0 for name in ("LoRA attention", "LoRA everywhere", "SHiRA"))
    assert {"torch", "triton", "peft", "python"} <= set(report["about"]) and report["date"]
    assert f"{len(report['results']) - len(steps)} of" in printed and "÷ floor" in printed


def test_the_tables_are_printed_again_from_the_file(small_run, tmp_path):
    printed, report = small_run
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(report), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.gpu", "--table", str(file)]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.strip() and printed.endswith(again.stdout)


def route_results(layer, dtype="fp32"):
    return list(route_checks.layer_results(route_checks.layers(1)[layer], dtype, "cpu"))


@pytest.mark.parametrize("layer", FEW_LAYERS)
def test_a_route_that_gives_other_numbers_fails_its_check(monkeypatch, layer):
    add_, factors = weight_gradient._add_, {"csr": 1.002}

    def otherwise(route, total, *of):
        add_(route, total, *of)
        total *= factors.get(route, 1)

    monkeypatch.setattr(weight_gradient, "_add_", otherwise)
    states = {(result["name"].split()[-1], result["ok"]) for result in route_results(layer)}
    assert ("csr", False) in states and ("csr", True) not in states
    assert ("dense", True) in states and ("dense", False) not in states


def test_a_route_that_raises_fails_and_the_others_go_on(monkeypatch):
    add_ = weight_gradient._add_

    def broken(route, total, *of):
        if route == "csr":
            raise RuntimeError("out of registers")
        add_(route, total, *of)
        if route == "dense":
            total *= float("nan")

    monkeypatch.setattr(weight_gradient, "_add_", broken)
    results = {result["name"]: result for result in route_results("Linear")}
    assert "out of registers" in results["6.0% by csr"]["exception"] and not results["6.0% by csr"]["ok"]
    assert results["6.0% by dense"]["error"] is None and not results["6.0% by dense"]["ok"]
    json.dumps(list(results.values()), allow_nan=False)


def scaled_take(take):
    return lambda store, number, op, x, grad_output, route: take(store, number, op, x, grad_output * 1.5, route)


@pytest.mark.parametrize("item, patched, broken", [
    ("model gradients, bf16", (Store, "take"), scaled_take),
    ("model gradients by each route", (Store, "take"), scaled_take),
    ("GradScaler, fp16", (Store, "take"), scaled_take),
    ("writing and restoring, bf16", (Store, "write"), lambda write: lambda store, frozen=False: None),
    ("writing and restoring, fp32", (Store, "restore"), lambda restore: lambda store: None),
    ("saving and continuing", (Store, "load_state"), lambda load: lambda store, state: None),
    ("adjustment", (Store, "freeze"), lambda freeze: lambda store, over: freeze(store, over.roll(1))),
    ("streaming, fp32", (attachment, "Streamed"), lambda streamed: lambda added: streamed(None)),
])  # fmt: skip
def test_what_is_broken_fails_its_check(monkeypatch, item, patched, broken):
    """Where CPU and device are the same, only what is broken on one of the two could be seen: hence not all checks."""
    tasks = {**model_checks.gradient_items("cpu", True), **model_checks.items("cpu", True)}
    owner, name = patched
    monkeypatch.setattr(owner, name, broken(getattr(owner, name)))
    try:
        assert not all(result["ok"] for result in tasks[item]())
    except Exception as error:  # which the worker reports as a failure of the item
        assert not isinstance(error, AttributeError), "the test itself is broken"


WORKER = """if True:
    import os, sys, time
    say = lambda text: print("@@" + text, flush=True)
    say('{"about": {"card": "none"}}')
    say('{"names": ["fine", "crashes", "hangs", "talks"]}')
    for name in sys.stdin.read().split():
        say('{"begin": "%s"}' % name)
        if name == "crashes":
            os._exit(9)
        if name == "hangs":
            time.sleep(600)
        print("anything")
        say('{"result": {"name": "a", "error": 0.0, "limit": 0.0, "ok": true, "note": ""}}')
        say('{"end": "%s", "seconds": 1}' % name)
"""


@pytest.fixture
def lane(tmp_path):
    """Of a worker with four items, of which one crashes and one hangs."""
    report = gpu.Report(tmp_path / "gpu.json", {})
    lane = gpu.Lane("x", "checks", SimpleNamespace(device="cpu", small=True), report, time.monotonic() + 60)
    lane.command = [sys.executable, "-c", WORKER]
    return lane


def found(lane):
    results = json.loads(lane.report.path.read_text(encoding="utf-8"))["results"]
    return {result["item"]: result for result in results}


def test_crashes_and_hangs_are_results_and_the_rest_goes_on(monkeypatch, lane):
    monkeypatch.setattr(gpu, "ITEM_SECONDS", 1)
    lane.run()
    results = found(lane)
    assert [name for name, result in results.items() if result["ok"]] == ["fine", "talks"]
    assert "ended with code 9" in results["crashes"]["exception"]
    assert "took too long" in results["hangs"]["exception"]


def test_when_the_time_is_over_what_is_known_is_in_the_file(lane):
    lane.deadline = time.monotonic() + 5
    lane.run()
    results = found(lane)
    assert results["fine"]["ok"] and not results["crashes"]["ok"]
    assert "no time left" in results["hangs"]["not_run"] and "no time left" in results["talks"]["not_run"]
    assert not list(lane.report.path.parent.glob("*.unfinished"))


def test_a_worker_that_never_starts_ends_the_lane(lane):
    lane.command = [sys.executable, "-c", "raise SystemExit(7)"]
    lane.run()
    assert "ended with code 7" in found(lane)["x"]["exception"]


def step(name, seconds, growth, **others):
    return {
        "part": "steps", "item": name, "name": name, "configuration": "c", "ok": True, "trained_elements": 1_000_000,
        "step": seconds, "loaded": 100.0, "peak": 100.0 + growth, "update_share": 0.1, "gradient_share": None,
        "preparing": 1.0, "first_step": 2.0, "finding_routes": 0.5, "routes": [], **others,
    }  # fmt: skip


def test_tables_compare_within_a_configuration():
    results = [
        step("floor", 0.1, 50), step("SaRA 0.6 %", 0.11, 75, gradient_share=0.05),
        step("LoRA attention", 0.2, 150), {"part": "steps", "item": "SHiRA", "name": "SHiRA", "configuration": "c",
                                           "ok": True, "out_of_memory": "…"},
    ]  # fmt: skip
    text = tables({"about": {"card": "H100"}, "date": "today", "results": results})
    row = next(line.split() for line in text if line.startswith("SaRA"))
    assert row[3:] == "1.00 M 110.0 1.100 0.550 75 25 0.700 10.0% 5.0% 1.00 2.00 0.50".split()
    assert any("SHiRA" in line and "out of memory" in line for line in text)


RESULTS = sorted((ROOT / "benchmarks" / "results").glob("gpu-*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_committed_results_say_where_they_come_from_and_print(path):
    data = json.loads(path.read_text(encoding="utf-8"))
    assert all(data["about"][name] for name in ("card", "driver", "capability", "torch", "triton", "peft", "python"))
    assert data["date"] and len(data["revision"]) == 40 and data["results"]
    assert data["about"]["card"] in "\n".join(tables(data))
    assert f"`{path.name}`" in (path.parent / "README.md").read_text(encoding="utf-8")


def test_the_documentation_says_what_the_results_of_the_h200_say():
    checks, steps = (
        json.loads((ROOT / "benchmarks" / "results" / f"gpu-h200-{name}.json").read_text(encoding="utf-8"))["results"]
        for name in ("checks", "steps")
    )
    documented = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    checks = [result for result in checks if result["part"] == "checks"]
    assert f"{sum(result['ok'] for result in checks)} of {len(checks)} checks" in documented
    configurations = {}
    for result in steps:
        if "step" in result:
            configurations.setdefault(result["configuration"], {})[result["name"]] = result
    whole = [methods for methods in configurations.values() if "floor again" in methods]
    against_lora, against_floor = [], []
    for methods in whole:
        for name, result in methods.items():
            milliseconds, growth = 1000 * result["step"], result["peak"] - result["loaded"]
            assert name == "floor again" or f"{milliseconds:,.0f}, {growth:,.0f}" in documented
        for name in ("SaRA 0.6 %", "SaRA 5.8 %"):
            against_lora.append(methods[name]["step"] / methods["LoRA attention"]["step"])
            against_floor.append(methods[name]["step"] / methods["floor"]["step"])
    assert f"{min(against_lora):.2f} to {max(against_lora):.1f} times as long" in documented
    assert f"{min(against_floor):.1f} to {max(against_floor):.1f} times the" in documented
