"""What a person sets for a training in a WebUI: read, checked, and as a run writes it down."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sara_core.errors import TrainingError
from sara_core.names.patterns import split_patterns
from sara_core.numbers import checked
from sara_core.training.record import RunSettings, parts_of_a_run, selection_asked_for
from sara_core.training.settings import SETTINGS, Setting
from sara_core.wording import listed, one_of

AMOUNTS = ("density", "count", "threshold")
# Beside those of every host: what is trained on, and what is shown of it.
OWN = {
    "name": Setting("", "What the delta is called: its file's name, without .safetensors. A delta of that name is "
                    "replaced when the training has come to its end."),
    "trigger": Setting("", "A word that calls for what is learned: it is put before every caption that does not have "
                       "it."),
    "caption": Setting("", "The caption of the pictures that have none of their own, which are left out without it "
                       "and a trigger."),
    "class_caption": Setting("", "Without class pictures: a caption with which the model is to draw as before, like 'a "
                             "dog' where one dog with a name is learned. A step then takes more than twice as long."),
    "resolution": Setting(512, "Pictures are cut to squares of this side, in pixels: 512 for SD1.5, 1024 for SDXL.", 64,
                          4096),
    "buckets": Setting(False, "Each picture is cut as little as possible, to one of several shapes with as many "
                       "pixels as the square."),
    "flip": Setting(False, "Each picture is also shown with left and right exchanged."),
    "select_by": Setting("density", "How it is said how many weights are trained.", choices=AMOUNTS),
    "density": Setting(0.01, "Share of the weights that is trained, smallest first. 0.01 is a good start, 0.05 learns "
                       "more.", 1e-6, 1.0),
    "gradient_checkpointing": Setting(True, "Needs much less memory for a somewhat longer step."),
    "prompts": Setting("", "One prompt a line, drawn now and then while it trains, always from the same noise."),
    "sample_every": Setting(100, "Draw the prompts after so many steps.", 1, 1_000_000),
}  # fmt: skip
# Of those of every host, what means something to the models that are trained here.
ALL = {**OWN, **{name: setting for name, setting in SETTINGS.items() if name != "noise_range"}}
MOST_PROMPTS = 8


@dataclass(frozen=True)
class WebSettings(RunSettings):
    """resolution: side of the squares, in pixels, that pictures are cut to; buckets: whether they keep about their
    shape instead; clip_skip: which layer of the text encoder captions are taken from, counted from the end"""

    resolution: int
    buckets: bool
    clip_skip: int


def read_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of ALL, as given or by default. Raises TrainingError, naming it, for a setting that there is not,
    and a value that it cannot have."""
    if unknown := [str(name) for name in given if name not in ALL]:
        raise TrainingError(f"There is no setting {listed(unknown)}. There are {', '.join(ALL)}.")
    return {name: _value(name, setting, given.get(name, setting.default)) for name, setting in ALL.items()}


def _value(name: str, setting: Setting, value: Any) -> Any:
    if isinstance(setting.default, bool):
        if not isinstance(value, bool):
            raise TrainingError(f"{name} is '{value}': it takes true or false.")
        return value
    if setting.is_number:
        return checked(value, name, setting.least, setting.most, whole=setting.is_whole, error=TrainingError)
    if not isinstance(value, str):
        raise TrainingError(f"{name} takes a text.")
    if setting.choices and value not in setting.choices:
        raise TrainingError(f"{name} is '{value}': it takes {one_of(setting.choices)}.")
    return value


def run_settings(values: Mapping[str, Any], data: str, clip_skip: int) -> WebSettings:
    """What decides the numbers of a run. values: of ALL; data: digest of pictures and captions"""
    amount = values["select_by"]
    read = {
        "selection": selection_asked_for(
            values["selection_rule"], amount, values[amount], values["per_layer"], values["seed"]
        ),
        "include": split_patterns(values["include"]), "exclude": split_patterns(values["exclude"]),
        "adjust_at": parts_of_a_run(values["adjust_at"]), "data": data, "clip_skip": clip_skip,
    }  # fmt: skip
    named = {name: values[name] for name in WebSettings.__dataclass_fields__ if name in values}
    return WebSettings(**{**named, **read})


def prompts(values: Mapping[str, Any]) -> list[str]:
    """The prompts that are drawn. Raises TrainingError for too many."""
    found = [line.strip() for line in values["prompts"].splitlines() if line.strip()]
    if len(found) > MOST_PROMPTS:
        raise TrainingError(f"There are {len(found)} prompts to draw: at most {MOST_PROMPTS} fit.")
    return found
