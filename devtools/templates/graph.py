"""What an example workflow is made of."""

from typing import Any, NamedTuple


class Node(NamedTuple):
    """at: left and top; size: width and height, both without the title bar; room: how much higher it may become when it
    has run, and in the renderer whose nodes are larger."""

    type: str
    at: tuple[int, int]
    size: tuple[int, int]
    widgets: dict[str, Any] = {}
    title: str | None = None
    room: int = 0


class Graph(NamedTuple):
    """links: (from node, output, to node, input); groups: title → nodes; nodes are named by the keys of ``nodes``."""

    nodes: dict[str, Node]
    links: list[tuple[str, str, str, str]]
    groups: dict[str, list[str]]


def note(text: str, at: tuple[int, int], size: tuple[int, int]) -> Node:
    return Node("MarkdownNote", at, size, {"": text}, "Note")


def checkpoint(at: tuple[int, int]) -> Node:
    return Node("CheckpointLoaderSimple", at, (320, 110), room=40)


PROMPT, NEGATIVE = {"string_b": "a ship on the sea", "delimiter": ", "}, {"text": "text, watermark"}
SQUARE = {"width": 512, "height": 512}
SAMPLING = {
    "seed": 1, "control_after_generate": "fixed", "steps": 20, "cfg": 7.0, "sampler_name": "dpmpp_2m",
    "scheduler": "karras",
}  # fmt: skip
