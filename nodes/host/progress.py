"""A line of text on a node, while it works and after, without any JavaScript of ours."""

from server import PromptServer


def show_text(node_class, text: str) -> None:
    """Show `text` on the node that is running. `node_class`: the class as executed, with its unique_id hidden input."""
    server = getattr(PromptServer, "instance", None)  # absent where nodes are called without a server
    node_id = getattr(node_class.hidden, "unique_id", None)
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)
