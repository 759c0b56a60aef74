"""The input of the page for one setting of a training, and what it says.

Made with what version 3.41 of gradio and its later ones have alike.
"""

from typing import Any

import gradio

from sara_core.training.settings import Setting


def component(name: str, setting: Setting) -> Any:
    """The input for one setting."""
    label = name.replace("_", " ").capitalize()
    if isinstance(setting.default, bool):
        return gradio.Checkbox(value=setting.default, label=label, info=setting.help)
    if setting.choices:
        return gradio.Dropdown(list(setting.choices), value=setting.default, label=label, info=setting.help)
    if setting.is_number:
        precision = {"precision": 0} if setting.is_whole else {}
        return gradio.Number(value=setting.default, label=label, info=setting.help, **precision)
    return gradio.Textbox(value=setting.default, label=label, info=setting.help)


def told(setting: Setting, value: Any) -> Any:
    """What an input of the page says, as the setting takes it: the page has nothing but floats, and None for what was
    left empty."""
    if value is None:
        return setting.default
    if setting.is_number and setting.is_whole and isinstance(value, float) and value.is_integer():
        return int(value)
    return value
