"""`python dev.py bench families`: a slice of its cases, chosen to differ, and what becomes of those that break."""

import pytest
import torch

from benchmarks.families import asked_for, without_case
from benchmarks.families_ import build, measure
from benchmarks.families_.cases import CASES, cases_of
from benchmarks.families_.tables import markdown

# In words: what gives it its place here.
SLICE = {
    "SD15": "convolutions, and noise as the target",
    "Flux Kontext": "a reference picture beside the text",
    "QwenImage": "weights without any effect",
    "WAN21_T2V A14B I2V": "a video with a picture in further channels",
    "Hunyuan3Dv2": "neither picture nor video",
    "CogVideoX_T2V": "v-prediction, whose last noise level is endless",
}


def config_of(case):
    return next(config for config in build.registered() if config.__name__ == case.config)


def case_named(name):
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize("name", SLICE)
def test_a_slice_is_exact(comfy, name):
    case = case_named(name)
    result = measure.measure(comfy, case, config_of(case))
    assert result["outcome"] == measure.EXACT, result
    assert result["last loss"] < result["first loss"]


def test_what_training_refuses_is_no_crash(comfy):
    case = case_named("SVD_img2vid")
    result = measure.measure(comfy, case, config_of(case))
    assert result["outcome"] == measure.REFUSED and "cannot be trained" in result["why"]


def test_a_gradient_that_is_not_the_dense_one_is_seen(comfy, monkeypatch):
    case, own = case_named("Flux"), measure._masked
    monkeypatch.setattr(measure, "_masked", lambda gradient, segment: own(gradient, segment) * 1.001)
    result = measure.measure(comfy, case, config_of(case))
    assert result["outcome"] == measure.NOT_EXACT and "gradients differ" in result["why"]


def test_what_a_host_raises_is_a_crash_with_its_place(comfy, monkeypatch):
    monkeypatch.setattr(measure, "_used", lambda *_: torch.zeros(2) @ torch.zeros(3))
    case = case_named("Flux")
    result = measure.measure(comfy, case, config_of(case))
    assert result["outcome"] == measure.CRASH and "test_bench_families.py" in result["why"]


def test_every_case_is_of_a_class_and_has_a_name_of_its_own(comfy):
    registered = {config.__name__ for config in build.registered()}
    assert {case.config for case in CASES} <= registered
    assert len({case.name for case in CASES}) == len(CASES)


def test_a_class_that_came_later_takes_the_cases_of_the_one_it_is_derived_from(comfy):
    flux = next(config for config in build.registered() if config.__name__ == "Flux")
    later = type("Flux9", (flux,), {"unet_config": {"image_model": "flux", "guidance_embed": False}})
    assert [case.name for case in cases_of(later)] == ["Flux", "Flux Kontext", "Flux Canny"]
    with torch.inference_mode():
        network = build.make_model(case_named("Flux"), later).model.diffusion_model
    assert not hasattr(network, "guidance_in") or not network.params.guidance_embed


def test_a_class_without_cases_is_in_the_table():
    report = {"versions": {"ComfyUI": "9", "torch": "8"}, "results": [without_case("Unheard")]}
    lines = markdown(report)
    assert any("Unheard" in line and "no case has been made" in line for line in lines)
    assert lines[-1] == "1 cases: 1 cannot be built."


@pytest.mark.parametrize(
    ("only", "found"), [(None, True), (["flux"], True), (["kontext", "sd3"], True), (["sd3"], False)]
)
def test_only_asks_for_classes_or_cases(only, found):
    assert asked_for("Flux", "Flux Kontext", only) is found
