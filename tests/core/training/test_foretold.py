"""What is said of a training before it begins: sizes that are near the real ones, and doubts that have a reason."""

import dataclasses

import pytest

from sara_core.names.outline import Outline
from sara_core.training.foretold import Machine, Pictures, Plan, foretold
from sara_core.training.presets import GOALS, preset

SDXL = Outline("SDXL", 2_567_463_684, 2_566_000_000, 1680)
TOY = Outline("SD1.5", 15_895_684, 15_874_560, 60)
PLAN = Plan("density", 0.01, 500, 1, 1, True)
GOOD = Pictures(20, 0, 0, 1024)


def keys(plan=PLAN, model=SDXL, pictures=GOOD, machine=Machine()):
    return [str(doubt) for doubt in foretold(plan, model, pictures, machine).doubts]


def test_sdxl_at_its_size_takes_what_was_measured_on_a_gpu():
    """Its weights in 16 bits, 682 MiB of a forward and backward at 1024 px, and 28 bytes an element."""
    known = foretold(dataclasses.replace(PLAN, value=0.058), SDXL, GOOD, Machine())
    elements = round(0.058 * SDXL.trainable)
    assert known.trained == elements
    beyond = (known.memory.size - 2 * SDXL.elements) / 2**20
    assert beyond == pytest.approx(682 + 28 * elements / 2**20, rel=0.05)
    assert not known.memory.is_least
    assert 4 * elements < known.delta < 6 * elements < known.disk


def test_more_pictures_a_step_take_more_and_what_was_measured_here_goes_first():
    several = foretold(dataclasses.replace(PLAN, batch_size=4), SDXL, GOOD, Machine()).memory.size
    one = foretold(PLAN, SDXL, GOOD, Machine()).memory.size
    assert several - one == pytest.approx(3 * 682 * 2**20, rel=0.1)
    measured = foretold(PLAN, SDXL, GOOD, Machine(working=10**9)).memory.size
    assert measured == 2 * SDXL.elements + 28 * round(0.01 * SDXL.trainable) + 10**9


def test_time_is_of_all_steps_and_unknown_without_a_step_before():
    assert foretold(PLAN, SDXL, GOOD, Machine(seconds=2.0)).seconds == 1000
    assert foretold(PLAN, SDXL, GOOD, Machine()).seconds is None


def test_what_is_not_known_is_left_out():
    nothing = foretold(dataclasses.replace(PLAN, amount="threshold", value=0.002), SDXL, Pictures(), Machine())
    assert nothing[:5] == (None, None, None, None, None) and not nothing.doubts
    assert foretold(PLAN, None, Pictures(), Machine())[:5] == (None,) * 5
    assert foretold(PLAN, TOY, Pictures(8, 0, 0, 64), Machine()).memory.is_least
    assert foretold(dataclasses.replace(PLAN, amount="count", value=7.0), None, GOOD, Machine()).trained == 7
    assert foretold(dataclasses.replace(PLAN, trains_all_layers=False), SDXL, GOOD, Machine()).trained is None


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("model", [SDXL, TOY])
def test_a_preset_raises_no_doubt(goal, model):
    chosen = {name: choice.value for name, choice in preset(goal, model, 20).items()}
    plan = Plan("density", chosen["density"], chosen["steps"], chosen["batch_size"], 1, True)
    assert keys(plan, model, Pictures(20, 0, 0, chosen["resolution"])) == []


def test_doubts_say_what_is_odd():
    def only(**known):
        (said,) = keys(**known)
        return said

    assert only(pictures=Pictures(20, 3, 0, 1024)).startswith("3 pictures without a caption")
    assert only(pictures=Pictures(20, 0, 1, 1024)).startswith("1 picture much smaller")
    assert only(pictures=Pictures(0)) == "There are no pictures to learn from."
    assert only(pictures=Pictures(20, 0, 0, 512)).startswith("512 px, and SDXL was made for 1024 px: it learns")
    assert "slower" in only(pictures=Pictures(20, 0, 0, 2048))
    assert "this tiny model was made for 64" in only(plan=dataclasses.replace(PLAN, value=0.04), model=TOY)
    assert "seen 3.3 times only" in only(plan=dataclasses.replace(PLAN, steps=66))
    assert "seen 2,500 times" in only(plan=dataclasses.replace(PLAN, steps=50_000))
    assert "0.01 % learns little" in only(plan=dataclasses.replace(PLAN, value=0.0001))
    assert "30 % is much" in only(plan=dataclasses.replace(PLAN, value=0.3))
    assert "more memory than there is" in only(machine=Machine(memory=4 << 30))
    assert "1.1 GB are free" in only(plan=dataclasses.replace(PLAN, value=0.04), machine=Machine(free=1 << 30))
