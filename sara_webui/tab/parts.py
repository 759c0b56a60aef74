"""Pieces of the page, made with what version 3.41 of gradio and its later ones have alike."""

from collections.abc import Callable
from typing import Any

import gradio

from sara_core.errors import SaRAError
from sara_core.training.settings import Setting

from .view import report, sentence


def component(name: str, setting: Setting, value: Any = None):
    """The input for one setting."""
    value = setting.default if value is None else value
    label = name.replace("_", " ").capitalize()
    if isinstance(setting.default, bool):
        return gradio.Checkbox(value=value, label=label, info=setting.help)
    if setting.choices:
        return gradio.Dropdown(list(setting.choices), value=value, label=label, info=setting.help)
    if setting.is_number:
        precision = {"precision": 0} if setting.is_whole else {}
        return gradio.Number(value=value, label=label, info=setting.help, **precision)
    return gradio.Textbox(value=value, label=label, info=setting.help)


def reported(work: Callable[..., str]) -> Callable[..., str]:
    """What a button does: the report of `work` as HTML, or its error in one sentence."""

    def answer(*values: Any) -> str:
        try:
            return report(work(*values))
        except SaRAError as error:
            return sentence(str(error), is_error=True)

    return answer


def told(setting: Setting, value: Any) -> Any:
    """What an input of the page says, as the setting takes it: the page has nothing but floats, and None for what was
    left empty."""
    if value is None:
        return setting.default
    if setting.is_number and setting.is_whole and isinstance(value, float) and value.is_integer():
        return int(value)
    return value
