"""The tab SaRA of a WebUI of AUTOMATIC1111's kin."""

import gradio

from .. import hosts
from ..training import hosts as training
from .a1111 import A1111Files, chosen_checkpoint, make_temporary_folder, may_use_paths
from .tool_tabs import ToolTabs
from .tools import Tools
from .view import sentence


def on_ui_tabs() -> list[tuple]:
    """For script_callbacks.on_ui_tabs."""
    host = hosts.current()
    make_temporary_folder()
    with gradio.Blocks(analytics_enabled=False) as page:
        with gradio.Tab("Train"):
            _train(page)
        ToolTabs(Tools(A1111Files(host))).build(page)
    for part in page.blocks.values():
        # Its settings file would have one value for all inputs of one label, and keep it when the extension is gone.
        part.do_not_save_to_config = True
    return [(page, "SaRA", "sara")]


def _train(page: gradio.Blocks) -> None:
    if reason := training.refusal():
        gradio.HTML(sentence(reason, is_error=True))
        return
    from .training import TrainTab  # older torches cannot import what trains

    TrainTab(training.runner(), may_use_paths(), chosen_checkpoint).build(page)
