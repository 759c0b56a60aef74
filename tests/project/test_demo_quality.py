"""The demo's model draws what it is asked for, and SaRA Train teaches it a style: some samples each, judged.

Fewer and smaller steps than the demo's, and half of a sample's: enough to see that the style is learnt. What the whole
demo gives is measured by `python dev.py bench demo`, whose results are in the repository.
"""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks.demo import PROMISED, kept
from demo import evaluate, settings
from devtools.comfyui.install import ROOT
from devtools.style_training import StyleTraining

FEWER = {"steps": 150, "batch_size": 4}
SAMPLES, SAMPLE_STEPS = 20, 10


@pytest.fixture(scope="module")
def base(comfy, checkpoint):
    with torch.inference_mode():
        return evaluate.load(checkpoint)


@pytest.fixture(scope="module")
def styled(comfy, base):
    """The base with a delta trained on the demo's style folder."""
    delta, model = StyleTraining(comfy, base).train(**FEWER)
    assert delta.density <= 0.05
    return model


def score(checkpoint, prefix):
    return evaluate.score(*evaluate.draw(checkpoint, prefix, SAMPLES, steps=SAMPLE_STEPS))


def test_the_base_draws_the_digit_it_is_asked_for(base):
    result = score(base, "")
    assert result.right >= 0.90 and result.styled == 0


def test_the_trigger_calls_the_style_and_the_right_digit(styled):
    result = score(styled, settings.STYLE)
    assert result.styled >= 0.70 and result.right >= 0.85


def test_without_the_trigger_the_style_stays_away(styled):
    assert score(styled, "").styled <= 0.10


def test_the_base_does_not_know_the_style(base):
    assert score(base, settings.STYLE).styled <= 0.10


def test_the_whole_demo_was_measured_to_be_as_promised():
    measured = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text(encoding="utf-8"))
    assert measured["date"] and measured["samples"] == 200 and measured["training"] == settings.TRAINING
    found = {(result["model"], result["prefix"]): result for result in measured["results"]}
    assert found.keys() == PROMISED.keys()
    for which, limits in PROMISED.items():
        assert kept(SimpleNamespace(**found[which]), limits), which
