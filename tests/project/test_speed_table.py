"""`dev.py bench speed`: its arithmetic, where its figures come from, and one small run."""

import json
import subprocess
import sys

import pytest

from benchmarks import route_costs, speed
from benchmarks.lib.step_run import Trainee, WeightGradients
from benchmarks.speed_ import needs, reports, revision
from benchmarks.speed_.targets import (
    GRADIENT, PRESSED, QUICK, REPORTED, SMALL, STEP, TRAININGS, UPDATE, Training,
)  # fmt: skip
from benchmarks.speed_.turns import in_turns
from benchmarks.train_.pytorch import ATTENTION, OURS
from devtools.comfyui.install import ROOT, HostError
from devtools.progress import Progress


def turn(seconds, processor, update=0.0, gradient=0.0):
    return {"seconds": seconds, "processor": processor, "update": update, "gradient": gradient}


TURNS = {
    "peer": [turn(1, 2), turn(2, 4), turn(4, 8)],
    "before": [turn(2, 2), turn(4, 4), turn(8, 8)],
    "today": [turn(0.5, 1, 0.05, 0.1), turn(1.2, 3, 0.06, 0.24), turn(2.8, 7, 0.28, 0.28)],
}
SIDES = {"before": TURNS, "today": TURNS}
TRAINING = Training("sd15", 5_000_000, 32, {STEP: 0.65, GRADIENT: None, UPDATE: 0.09}, batch=4)


def test_a_ratio_is_the_median_of_what_each_turn_says():
    step, gradient, update = speed.step_rows(TRAINING, SIDES)
    assert step["name"].startswith("sd15, 5 M 32×32, fp32, batch 4: step ÷")
    assert step["today"] == 0.6 and step["today spread"] == [0.6, 0.5, 0.7] and step["today processor"] == 0.75
    assert step["before"] == 2.0
    assert gradient["today"] == pytest.approx(0.2) and update["today"] == pytest.approx(0.1)


def test_the_table_says_what_was_promised_and_whether_it_is_kept():
    rows = [*speed.step_rows(TRAINING, SIDES), {"name": "unknown", "target": 1.0, "before": 0.5}]
    report = {"rows": rows, "against": "0123456789abcdef", "machine": {"processor": "P", "cores": 2, "system": "S"},
              "versions": {}, "measurements": [{"cores_used_by_others": 1.5}]}  # fmt: skip
    _, header, step, gradient, update, unknown, *rest = speed.text(report)
    assert header.split() == ["0123456789", "today", "target", "met"]
    assert step.split()[-6:] == ["(1.000)", "0.600", "(0.750)", "≤", "0.65", "yes"]
    assert gradient.endswith("0.200") and update.split()[-1] == "NO"
    assert unknown.split()[1:] == ["0.500", "–", "≤", "1"]
    assert "unreliable" in rest[-1]
    assert speed.markdown(report)[-1] == "| unknown | 0.500 | – | ≤ 1 |  |"


def test_every_row_has_a_name_of_its_own():
    names = [training.name for training in (*TRAININGS, *QUICK, *SMALL)] + [one.name for one in (*REPORTED, PRESSED)]
    assert len(set(names)) == len(names)
    assert {one.part for one in (*REPORTED, PRESSED)} == set(speed.PARTS) - {"steps"}


def test_a_figure_is_found_by_names_and_places_or_told_to_be_missing():
    report = {"ratios": [{"name": "a / b", "spread": [0.5, 0.1, 1]}], "sizes": {"6%": {"bf16": 3}}}
    assert reports.figure_at(report, ("ratios", "name=a / b", "spread", "0")) == 0.5
    assert reports.figure_at(report, ("sizes", "6%", "bf16")) == 3.0
    for path in [("ratios", "name=c", "spread", "0"), ("ratios", "name=a / b", "spread", "3"), ("sizes", "7%", "bf16")]:
        with pytest.raises(KeyError):
            reports.figure_at(report, path)


def test_a_revision_is_measured_by_todays_benchmarks(monkeypatch, tmp_path):
    for name in revision.TODAYS:
        (tmp_path / "today" / name).mkdir(parents=True)
        (tmp_path / "today" / name / "todays").touch()

    def check_out(repository, name, folder):
        for part in (*revision.TODAYS, "sara_core"):
            (folder / part).mkdir(parents=True)
            (folder / part / name).touch()

    monkeypatch.setattr(revision, "ROOT", tmp_path / "today")
    monkeypatch.setattr(revision, "check_out", check_out)
    folder = revision.measurable("old", tmp_path / "before")
    assert (folder / "sara_core" / "old").exists() and (folder / ".git").exists()
    assert [path.name for path in (folder / "benchmarks").iterdir()] == ["todays"]


def test_a_training_that_fails_is_told_with_its_own_words():
    with pytest.raises(HostError, match="no-such-method"):
        in_turns({"today": (SMALL[0].spec("no-such-method"), ROOT)}, 1)


def test_a_small_run_measures_in_turns_and_saves(tmp_path):
    path = tmp_path / "speed.json"
    command = [sys.executable, "-m", "benchmarks.speed", "--small", "--row", "fp32", "--repetitions", "2"]
    result = subprocess.run([*command, "--json", str(path)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    measurement, = json.loads(path.read_text(encoding="utf-8"))["measurements"]
    assert measurement["turns"].keys() == {"peer", "today"} and "≤ 0.9" in result.stdout
    for taken in measurement["turns"].values():
        assert len(taken) == 2 and all(one["seconds"] > one["update"] >= 0 for one in taken)
    assert all(0 < one["gradient"] < one["seconds"] for one in measurement["turns"]["today"])
    assert not any(one["gradient"] for one in measurement["turns"]["peer"])
    assert "this needs" in result.stdout + result.stderr


@pytest.mark.parametrize("method", [OURS, ATTENTION])
@pytest.mark.parametrize("training", SMALL[1:], ids=lambda training: training.name)
def test_rows_in_bf16_with_checkpointing_and_of_flux_run_in_a_small_form(training, method, monkeypatch):
    from sara_core.backward.store import Store

    monkeypatch.setattr(Store, "take", Store.take)  # what WeightGradients puts there is taken away again
    trainee = Trainee(training.spec(method))
    trainee.prepare()
    gradients = WeightGradients()
    trainee.step()
    assert (gradients.seconds > 0) == (method == OURS)


@pytest.mark.parametrize("revisions", [1, 2])
@pytest.mark.parametrize("training", (*TRAININGS, *QUICK, *SMALL), ids=lambda training: training.name)
def test_no_row_takes_more_than_16_gb_and_every_revision_steps_beside_the_lora(training, revisions):
    sides = {"today": ROOT, "before": ROOT} if revisions == 2 else {"today": ROOT}
    groups = speed.beside_the_peer(training, sides)
    assert [side for group in groups for side in group] == list(sides)
    assert all(needs.of_training(training, 1 + len(group), 7).mib * needs.MIB <= 16e9 for group in groups)


def test_what_a_run_needs_is_the_most_memory_and_all_minutes():
    assert needs.together([needs.Needs(2000, 3), needs.Needs(1000, 4)]) == (2000, 7)
    few, many = (needs.of_training(Training("sd15", elements, 32, {}), 2, 7) for elements in (5_000_000, 50_000_000))
    assert many.mib - few.mib == pytest.approx(45_000_000 * 28 / needs.MIB) and many.minutes == few.minutes
    assert needs.Needs(1000, 0.2).text() == "1.0 GB of memory, about 1 minutes"


def test_a_part_whose_benchmark_fails_leaves_its_rows_out(monkeypatch):
    def fails(part, checkout, progress):
        raise HostError("no")

    monkeypatch.setattr(reports, "report_of", fails)
    arguments, report = speed.argparse.Namespace(part=("files",), small=False, quick=False), {"rows": []}
    speed.measure(arguments, {"today": ROOT}, report, Progress(), lambda: None)
    assert len(report["rows"]) == 4 and not any("today" in row for row in report["rows"])


def test_a_training_that_fails_leaves_its_rows_empty(monkeypatch):
    def fails(specs, repetitions):
        raise HostError("no")

    monkeypatch.setattr(speed, "in_turns", fails)
    arguments = speed.argparse.Namespace(part=("steps",), small=True, quick=False, row=None, repetitions=1)
    report = {"rows": [], "measurements": []}
    speed.measure(arguments, {"today": ROOT}, report, Progress(), lambda: None)
    assert len(report["rows"]) == 7 and not any("today" in row for row in report["rows"])


def test_costs_are_fitted_to_what_was_measured():
    rows = [
        {"rows": rows, "columns": columns, "tokens": tokens, "chosen": chosen,
         "csr": (700 * (rows + columns) + 90 * chosen) * tokens / 1e9,
         "dense": (20 * tokens + 500) * rows * columns / 1e9}
        for rows, columns, tokens, chosen in [(320, 640, 100, 900), (640, 640, 50, 20000), (1280, 320, 10, 5000)]
    ]  # fmt: skip
    assert route_costs.fitted(rows) == route_costs.Costs(700, 90, 20, 500)
