"""The words behind a conditioning, which itself holds none: as far as they stand in the prompt that is running."""

from collections.abc import Mapping
from typing import Any

# Inputs under which nodes have a text, and those through which they hand on a conditioning.
_TEXTS = ("text", "value", "string")
_ON = ("conditioning", "positive")
_MOST_NODES = 20


def text_behind(prompt: Any, node: str | None, name: str) -> str:
    """The text that an input of a node comes from; empty where it is made by something that has none.

    prompt: as it was queued, node id → {"inputs": {name: value or [node id, output]}}
    """
    asked = (name,)
    for _ in range(_MOST_NODES):  # a prompt from anywhere may go round in circles
        inputs = _inputs(prompt, node)
        found = next((inputs[name] for name in asked if name in inputs), None)
        if isinstance(found, str):
            return found
        if not isinstance(found, (list, tuple)) or not found:
            return ""
        node, asked = found[0], (*_TEXTS, *_ON)
    return ""


def _inputs(prompt: Any, node: Any) -> Mapping:
    found = prompt.get(str(node)) if isinstance(prompt, Mapping) else None
    inputs = found.get("inputs") if isinstance(found, Mapping) else None
    return inputs if isinstance(inputs, Mapping) else {}
