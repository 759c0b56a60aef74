"""The benchmarks say what they measure: their arithmetic, their options, and one small run of each kind."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks import in_place, scaling
from benchmarks.lib.report import Spread, text_table
from benchmarks.train_ import comfyui
from benchmarks.train_ import pytorch
from devtools.comfyui.install import ROOT

NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py"))
WRITERS = [
    "train", "scaling", "apply", "files", "demo", "precision", "startup", "hosts", "webui", "speed", "route_costs",
    "in_place", "gpu_host", "webui_training",
]  # fmt: skip
MIB = 1 << 20

# Every benchmark once with each of these; in one process, because each imports torch.
ARGUMENTS = {"help": ["--help"], "no folder": ["--json", "no/such/folder/result.json"]}
PROGRAM = """
import contextlib, io, json, runpy, sys

for name, arguments in json.loads(sys.argv[1]):
    output, errors, status = io.StringIO(), io.StringIO(), None
    sys.argv[:] = [name, *arguments]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            runpy.run_module(f"benchmarks.{name}", run_name="__main__")
        except SystemExit as end:
            status = end.code
    print(json.dumps([status, output.getvalue(), errors.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def said():
    """(name, which arguments) → exit status, standard output and standard error."""
    runs = [*((name, "help") for name in NAMES), *((name, "no folder") for name in WRITERS)]
    jobs = json.dumps([[name, ARGUMENTS[which]] for name, which in runs])
    result = subprocess.run([sys.executable, "-c", PROGRAM, jobs], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return dict(zip(runs, map(json.loads, result.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_explains_its_options(said, name):
    status, output, _ = said[name, "help"]
    assert status == 0 and f"bench {name}" in output


def test_the_issues_benchmarks_are_there():
    assert {"train", "apply", "files", "scaling"} <= set(NAMES)


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_does_not_exist_is_refused_before_anything_is_measured(said, name):
    status, _, errors = said[name, "no folder"]
    assert status == 2 and "does not exist" in errors


def measurement(method, step, peak, round=0, elements=5_000_000, checkpointing=True, trained=5_000_000, **others):
    return {
        "model": "sd15", "device": "cpu", "method": method, "elements": elements, "checkpointing": checkpointing,
        "round": round, "steps": [step - 0.1, step, step + 3], "peak": peak, "update_share": 0.02,
        "trained_elements": trained, "weight_gradient_share": 0.05, **others,
    }  # fmt: skip


def found(ratios, name):
    one, = (ratio for ratio in ratios if ratio["name"] == name)
    return one


def test_the_ways_to_write_in_place_are_measured_and_drawn_up(monkeypatch):
    monkeypatch.setattr(in_place, "CASES", [(8, 16, 2, 0.5, in_place.torch.bfloat16)])
    report = {"machine": {"processor": "P", "cores": 2, "system": "S"}, "versions": {}}
    report["cases"] = in_place.measured(SimpleNamespace(rounds=2))
    (name, ways), = report["cases"].items()
    assert ways.keys() == set(in_place.WAYS) and all(len(rounds) == 2 for rounds in ways.values())
    report["cases"] = {name: dict(zip(in_place.WAYS, ([1, 3], [2, 3], [4, 4], [1, 1], [2, 8])))}
    _, row, *_ = in_place.text(report)
    assert row.split()[3:] == ["2.0", "2.5", "4.0", "1.0", "5.0", "0.62", "(0.50-0.75)", "0.31", "(0.12-0.50)"]


def test_ratios_compare_within_a_round():
    measurements = [
        measurement("floor", 4.0, 4500, trained=0), measurement("SaRA", 5.0, 4600),
        measurement("floor", 8.0, 4500, round=1, trained=0), measurement("SaRA", 8.0, 4600, round=1),
    ]  # fmt: skip
    ratio = found(pytorch.ratios(measurements), "SaRA 5 M, checkpointing: step / floor")
    assert ratio == {**ratio, "spread": Spread(1.125, 1.0, 1.25), "limit": 1.20}


def test_memory_is_allowed_28_bytes_an_element_and_64_mib():
    allowed = 5_000_000 * 28 / MIB + 64
    measurements = [measurement("floor", 4.0, 4500, trained=0), measurement("SaRA", 5.0, 4500 + allowed)]
    name = "SaRA 5 M, checkpointing: peak / (floor + 28 B an element + 64 MiB)"
    ratio = found(pytorch.ratios(measurements), name)
    assert ratio["spread"].median == pytest.approx(1) and ratio["limit"] == 1.0


def test_a_model_that_nothing_was_promised_for_has_no_targets():
    measurements = [measurement(method, 4.0, 4500, model="small") for method in ("floor", "SaRA")]
    ratios = pytorch.ratios([{**one, "model": "small"} for one in measurements])
    assert ratios and not any(ratio["limit"] for ratio in ratios)


def test_in_comfyui_ours_is_compared_with_the_better_of_cores_modes():
    runs = {"SaRA": (2.0, 100), "LoRA bypass": (4.0, 1000), "LoRA default": (3.0, 2000)}
    measurements = [
        {"method": method, "gradient_checkpointing": checkpointing, "round": 0, "steps": [step], "growth": growth,
         "later_growth": growth}
        for method, (step, growth) in runs.items() for checkpointing in (True, False)
    ]  # fmt: skip
    ratios = comfyui.ratios(measurements)
    assert found(ratios, "step / better LoRA, checkpointing")["spread"].median == pytest.approx(2 / 3)
    assert found(ratios, "growth / better LoRA, checkpointing")["spread"].median == pytest.approx(0.1)
    assert found(ratios, "growth / better LoRA")["limit"] is None


def test_scaling_takes_the_floor_of_the_same_inputs():
    settings = SimpleNamespace(model="sd15", latent=32, steps=3, device="cpu", dtype="float32")
    sweep = [spec for spec in scaling.planned(settings)["latent"] if (spec["method"], spec["latent"]) == ("SaRA", 64)]
    measurements = [
        measurement("floor", 4.0, 0, latent=32, batch=1, growth=300, trained=0),
        measurement("floor", 10.0, 0, latent=64, batch=1, growth=500, trained=0),
        measurement("SaRA", 12.0, 0, latent=64, batch=1, growth=600),
    ]  # fmt: skip
    row, = scaling.rows(sweep, measurements)
    assert row["step_over_floor"].median == pytest.approx(1.2) and row["growth_over_floor"] == 100


def test_a_table_lines_up():
    assert text_table(["a", "b"], [["long name", "1.0"], ["x", "10.25"]]) == [
        "a              b", "long name    1.0", "x          10.25",
    ]  # fmt: skip


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured on Linux only")
def test_a_small_training_is_measured_drawn_and_saved(tmp_path):
    target = tmp_path / "train.json"
    options = ["--part", "pytorch", "--small", "--steps", "2", "--checkpointing", "on", "--methods", "floor", "SaRA"]
    command = [sys.executable, "-m", "benchmarks.train", *options, "--json", str(target)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report = json.loads(target.read_text())["pytorch"]
    assert "step / floor" in result.stdout and (tmp_path / "train.png").stat().st_size > 1000
    trained = {m["method"]: m["trained_elements"] for m in report["measurements"] if m["elements"] == 30_000}
    assert trained == {"floor": 0, "SaRA": 30_000}
    assert all(m["growth"] > 0 and len(m["steps"]) == 1 for m in report["measurements"])
