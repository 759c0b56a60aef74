"""Settings to begin with: by goal and model, each with its reason, and ones that a training takes."""

import pytest

from sara_core.models.family import outline_of_file
from sara_core.names.outline import Outline, outline_of
from sara_core.training.presets import GOALS, native_resolution, preset
from sara_core.training.settings import SETTINGS

SD15 = Outline("SD1.5", 859_520_964, 859_000_000, 686)
SDXL = Outline("SDXL", 2_567_463_684, 2_566_000_000, 1680)
FLUX = Outline("Flux", 11_901_408_320, 11_890_000_000, 504)
UNKNOWN_LARGE, UNKNOWN_SMALL = Outline(None, 6 * 10**9, 6 * 10**9, 300), Outline(None, 6 * 10**8, 6 * 10**8, 300)


def values(*asked, **more):
    return {name: choice.value for name, choice in preset(*asked, **more).items()}


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("model", [None, SD15, SDXL, FLUX, UNKNOWN_LARGE, UNKNOWN_SMALL])
def test_each_value_is_allowed_and_has_its_reason(goal, model):
    for name, choice in preset(goal, model).items():
        assert len(choice.why) > 20, name
        if name in SETTINGS and SETTINGS[name].is_number:
            assert SETTINGS[name].least <= choice.value <= SETTINGS[name].most, name
    assert 0.0001 <= preset(goal, model)["density"].value <= 0.06


def test_a_larger_model_trains_more_weights_and_a_smaller_share():
    shares = [values("style", model)["density"] for model in (SD15, SDXL, FLUX)]
    assert shares == sorted(shares, reverse=True) and shares[0] == 0.02
    trained = [share * model.trainable for share, model in zip(shares, (SD15, SDXL, FLUX))]
    assert trained == sorted(trained)


@pytest.mark.parametrize(
    "density", [0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.012, 0.015, 0.02, 0.03]
)
def test_the_share_falls_with_the_root_of_the_size_in_round_numbers(density):
    size = round(860_000_000 * (GOALS["concept"].density / density) ** 2)
    assert values("concept", Outline(None, size, size, 300))["density"] == density


def test_goals_differ_as_they_say():
    densities = {goal: values(goal, SD15)["density"] for goal in GOALS}
    assert densities["subject"] < densities["style"] < densities["concept"]
    assert values("style", SD15, pictures=40)["steps"] == 2 * values("style", SD15, pictures=20)["steps"]


@pytest.mark.parametrize("goal, least, most", [("style", 400, 3000), ("subject", 600, 2000), ("concept", 800, 6000)])
def test_neither_one_picture_nor_a_million_make_a_run_that_nobody_wants(goal, least, most):
    assert values(goal, SD15, pictures=1)["steps"] == least
    assert values(goal, SD15, pictures=10**6)["steps"] == most


def test_the_papers_rule_is_kept_where_it_was_fitted():
    assert values("style", SD15)["learning_rate"] == values("style", SDXL)["learning_rate"] == 0
    assert 0 < values("style", FLUX)["learning_rate"] < 0.0005


def test_the_resolution_is_the_familys_or_goes_by_the_size():
    assert [values("style", model)["resolution"] for model in (SD15, SDXL, UNKNOWN_LARGE, UNKNOWN_SMALL, None)] == [
        512, 1024, 1024, 512, 512,
    ]  # fmt: skip
    assert native_resolution(UNKNOWN_LARGE) is None


def test_the_demos_model_is_known_to_be_tiny_and_has_its_own_settings(checkpoint):
    from demo import settings

    toy = outline_of_file(checkpoint)
    assert toy.family == "SD1.5" and 15e6 < toy.trainable < 16e6
    chosen = values("concept", toy)
    assert chosen["resolution"] == settings.SIZE
    same = ("steps", "batch_size", "learning_rate", "adjust_at")
    assert {name: chosen[name] for name in same} == {name: settings.TRAINING[name] for name in same}
    assert chosen["density"] * 100 == settings.TRAINING["density"]


def test_only_layers_count_as_trainable():
    shapes = {"a.weight": (4, 3), "b.weight": (2, 2, 3, 3), "a.bias": (4,), "norm.weight": (7,), "scale": (2, 2)}
    assert outline_of(shapes) == Outline(None, 12 + 36 + 4 + 7 + 4, 48, 2)
