"""The inputs for settings that sara_core knows, with its defaults, ranges and sentences."""

from comfy_api.latest import io

from ..sara_core.training.settings import SETTINGS


def setting_input(name: str, needs: str = "", **more) -> io.Input:
    """The input of a setting.

    needs: a sentence more for the tooltip, about another input; more: what only the page needs to know
    """
    setting = SETTINGS[name]
    common = {"default": setting.default, "tooltip": f"{setting.help} {needs}".rstrip(), **more}
    if setting.choices:
        return io.Combo.Input(name, options=list(setting.choices), **common)
    if isinstance(setting.default, bool):
        return io.Boolean.Input(name, **common)
    if isinstance(setting.default, str):
        return io.String.Input(name, **common)
    kind = io.Int if isinstance(setting.default, int) else io.Float
    return kind.Input(name, min=setting.least, max=setting.most, **common)
