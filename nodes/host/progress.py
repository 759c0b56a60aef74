"""What a node shows while it works and after, without any JavaScript of ours: a bar, and a line of text."""

import inspect
from collections.abc import Callable

import comfy.model_management
import comfy.utils
from server import PromptServer

from ...sara_core.foreign_text import plain_lines


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
    """Show `text`, which may have foreign text in it, on the node that is running.

    node_class: the class as executed, with its unique_id hidden input
    """
    server = getattr(PromptServer, "instance", None)  # absent where nodes are called without a server
    node_id = _node_id(node_class)
    if server is None or node_id is None:
        return
    # To the page that queued the prompt alone, where the host can: pages know nodes by their number, whatever workflow.
    client = getattr(server, "client_id", None)
    if "sid" in inspect.signature(server.send_progress_text).parameters:
        server.send_progress_text(plain_lines(text), node_id, sid=client)
    else:
        server.send_progress_text(plain_lines(text), node_id)


def _node_id(node_class) -> str | None:
    return getattr(node_class.hidden, "unique_id", None)
