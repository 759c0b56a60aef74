"""`--preset GOAL` of `python -m sara_core train`: the settings of training/presets.py, where none are given."""

import argparse
from typing import Any

from ..models.family import outline_of_file
from ..training.presets import GOALS, preset
from .terminal import option


class Given(argparse.Action):
    """Stores a value, and that it was given: whoever writes a default down means it."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None):
        setattr(namespace, self.dest, values)
        namespace.given = {*getattr(namespace, "given", ()), self.dest}


def add_preset(group: argparse._ArgumentGroup) -> None:
    """Declare --preset."""
    group.add_argument(
        "--preset", choices=GOALS, metavar="GOAL",
        help=f"Settings to begin with for what is to be learned: {', '.join(GOALS)}. By the model and the number of "
        "images it chooses resolution, density, steps, batch size, learning rate and adjustment, where you give "
        "none, and says why.",
    )  # fmt: skip


def apply_preset(arguments: argparse.Namespace, pictures: int, amounts: tuple[str, ...]) -> str:
    """Set what the preset chooses and the caller has not given; returns what was set, a line each, with the reason.

    amounts: settings of which one says how many weights are trained: with one given, the density stays unset
    """
    given = set(getattr(arguments, "given", ()))
    if any(getattr(arguments, name) is not None for name in amounts):
        given |= set(amounts)
    chosen = preset(arguments.preset, outline_of_file(arguments.base), pictures)
    lines = []
    for name, choice in chosen.items():
        if name not in given:
            setattr(arguments, name, choice.value)
            value = "''" if choice.value == "" else f"{choice.value:g}" if name != "adjust_at" else choice.value
            lines.append(f"{option(name)} {value}: {choice.why}")
    return "\n".join([f"The preset '{arguments.preset}' chooses", *(f"  {line}" for line in lines)])
