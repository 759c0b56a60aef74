"""Settings to begin with, by what is to be learned and by the model, each with the reason for it.

Where a figure has been measured, here or by the paper, the reason says so; the others are the same figures carried over
to models of other sizes, and say that, too.
"""

import math
from typing import Any, NamedTuple

from ..names.outline import Outline
from ..wording import Sentence, counted_pictures


class Choice(NamedTuple):
    """A value, and why."""

    value: Any
    why: Sentence


class Goal(NamedTuple):
    """density: share of SD1.5's weights, 0 … 1; steps_a_picture: with one picture a step; least, most: steps"""

    density: float
    which: Sentence
    steps_a_picture: int
    least: int
    most: int
    course: Sentence


GOALS = {
    "style": Goal(
        0.02, Sentence("about what the paper's middle setting trains of Stable Diffusion 1.5"), 25, 400, 3000,
        Sentence("how pictures look is learned from all of them together"),
    ),
    "subject": Goal(
        0.01, Sentence("one person, animal or thing is little to learn, and more weights forget others of its kind"),
        40, 600, 2000,
        Sentence("one thing is seen in each of few pictures; with many more steps the pictures themselves are learned"),
    ),
    "concept": Goal(
        0.04,
        Sentence("something that the model does not know at all, towards the most that the paper trains (5.8 %)"),
        50, 800, 6000, Sentence("what is new to the model takes longest"),
    ),
}  # fmt: skip

# Of SD1.5, in whose weights the densities of GOALS were tried.
_MEASURED_ON = 860_000_000
MOST_DENSITY = 0.04
_DENSITIES = (0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.012, 0.015, 0.02, 0.03, 0.04)
# So small are toys, such as the demo's.
_TINY = 100_000_000
_TINY_CHOICES = {
    "resolution": Choice(64, Sentence("this model is tiny, and the demo's was made for 64 px")),
    "density": Choice(MOST_DENSITY, Sentence("in a model this small less is too little; measured with the demo")),
    "steps": Choice(400, Sentence("as in the demo, which was measured")),
    "batch_size": Choice(8, Sentence("pictures this small leave room for 8, and the demo was measured so")),
    "learning_rate": Choice(0.0, Sentence("the paper's rule, as in the demo")),
    "adjust_at": Choice(
        "", Sentence("weights this small all outgrow θ, so that the second half would train nothing; measured")
    ),
}  # fmt: skip

# The side of the squares that the models of a family were made for, in pixels.
RESOLUTIONS = {
    "SD1.5": 512, "SD2.1": 768, "SDXL": 1024, "SDXL Refiner": 1024, "SSD-1B": 1024, "Segmind Vega": 1024,
    "KOALA 700M": 1024, "KOALA 1B": 1024, "SD3": 1024, "Flux": 1024, "Flux.2": 1024, "Z-Image": 1024,
    "Qwen-Image": 1024, "Wan 2.1": 640, "Wan 2.2": 704,
}  # fmt: skip
# Above so many weights, models that are not known are taken for such as draw large pictures.
_LARGE = 1_500_000_000
# Diffusion with noise that is predicted, for which the paper has fitted its rule; and its Stable Diffusion 3.
_RULE_HOLDS = {
    "SD1.5", "SD2.1", "SDXL", "SDXL Refiner", "SSD-1B", "Segmind Vega", "KOALA 700M", "KOALA 1B", "SD3",
}  # fmt: skip
_OTHERS_RATE = 0.0003
# Without a number of pictures: as many as people begin with.
_USUAL_PICTURES = 20


def preset(goal: str, model: Outline | None = None, pictures: int | None = None) -> dict[str, Choice]:
    """Settings for one of GOALS, by the names of training.settings; beside these `density`, a share, 0 … 1, and
    `resolution`, the side in pixels of the square that a picture has as many pixels as.

    model: what is trained; None where nothing is known of it, for which SD1.5 stands
    pictures: how many there are to learn from, None where that is not known
    """
    if model is not None and is_tiny(model):
        return dict(_TINY_CHOICES)
    chosen = GOALS[goal]
    return {
        "resolution": _resolution(model),
        "density": _density(chosen, model),
        "steps": _steps(chosen, pictures),
        "batch_size": Choice(1, Sentence("takes least memory, and learns a picture a step")),
        "learning_rate": _rate(model),
        "adjust_at": Choice("0.5", Sentence("the paper's: half-way, what has outgrown the small weights is finished")),
    }


def is_tiny(model: Outline) -> bool:
    """Whether it is a toy, smaller than any model that people draw with."""
    return model.trainable < _TINY


def native_resolution(model: Outline | None) -> int | None:
    """The side in pixels of the squares that a known family's models were made for; None for others."""
    if model is not None and is_tiny(model):
        return _TINY_CHOICES["resolution"].value
    return None if model is None else RESOLUTIONS.get(model.family)


def _resolution(model: Outline | None) -> Choice:
    if (known := native_resolution(model)) is not None:
        return Choice(known, Sentence("what {model} was made for", model=model.family))
    if model is not None and model.trainable >= _LARGE:
        return Choice(1024, Sentence("this family is not known; models of this size mostly draw 1024 px"))
    return Choice(512, Sentence("this family is not known; models of this size mostly draw 512 px"))


def _density(goal: Goal, model: Outline | None) -> Choice:
    """More weights in a larger model, but a smaller share of them."""
    if model is None or math.isclose(model.trainable, _MEASURED_ON, rel_tol=0.1):
        return Choice(goal.density, goal.which)
    wanted = min(MOST_DENSITY, goal.density * math.sqrt(_MEASURED_ON / model.trainable))
    nearest = min(_DENSITIES, key=lambda density: abs(math.log(density / wanted)))
    if model.trainable > _MEASURED_ON:
        why = Sentence("{which}; less, because this model is larger; not measured here", which=goal.which)
    else:
        why = Sentence("{which}; more, because this model is smaller; not measured here", which=goal.which)
    return Choice(nearest, why)


def _steps(goal: Goal, pictures: int | None) -> Choice:
    steps = (_USUAL_PICTURES if pictures is None else pictures) * goal.steps_a_picture
    steps = min(goal.most, max(goal.least, round(steps, -2)))
    usual = Sentence("some {count} pictures", count=_USUAL_PICTURES)
    counted = counted_pictures(pictures) if pictures else usual
    return Choice(steps, Sentence("for {pictures}: {course}", pictures=counted, course=goal.course))


def _rate(model: Outline | None) -> Choice:
    if model is None or model.family in _RULE_HOLDS:
        return Choice(0.0, Sentence("the paper's rule, which was fitted on Stable Diffusion"))
    return Choice(
        _OTHERS_RATE,
        Sentence(
            "the paper's rule was fitted on Stable Diffusion and may be too high here, where nothing has been "
            "measured; raise it if the loss hardly falls"
        ),
    )
