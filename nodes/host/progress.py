"""What a node shows while it works and after, without any JavaScript of ours: a bar, and a line of text."""

from collections.abc import Callable

import comfy.model_management
import comfy.utils
from server import PromptServer


def shown_progress() -> Callable[[int, int], None]:
    """A function of steps done and steps in all that moves the bar of the node that is running.

    It raises the host's InterruptProcessingException when the user has pressed Cancel.
    """
    bar = comfy.utils.ProgressBar(1)

    def on_progress(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return on_progress


def show_text(node_class, text: str) -> None:
    """Show `text` on the node that is running. `node_class`: the class as executed, with its unique_id hidden input."""
    server = getattr(PromptServer, "instance", None)  # absent where nodes are called without a server
    node_id = getattr(node_class.hidden, "unique_id", None)
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)
