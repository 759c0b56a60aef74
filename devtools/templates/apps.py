"""The example workflows as apps: a form with what there is to choose, and beside it what comes out (ComfyUI's App
mode).

The graph is the same, and one click away. What a form shows of a node is a widget of it: an input, or the panel that
the pack's JavaScript puts on it.
"""

import copy
from typing import NamedTuple

from .graph import Graph
from .graphs import LEARN_A_SUBJECT, TRAIN_A_STYLE
from .notes import STRENGTHS
from .ui_workflow import ObjectInfo, Workflow, inputs

# Panels of our nodes, as js/ calls them.
GALLERY, CARDS, CHECK, TRAINING = "gallery", "cards", "sara_check", "sara_training"
GALLERY_HEIGHT = 420  # pixels


class Field(NamedTuple):
    """A line of the form. label: what stands above it; of a panel the page's own words."""

    node: str
    widget: str
    label: str = ""


class App(NamedTuple):
    """fields: in the order of the form; outputs: nodes whose results are shown; both by the keys of the graph's nodes.
    """

    fields: list[Field]
    outputs: list[str]


_MODEL = Field("checkpoint", "ckpt_name", "Model")
_TO_DRAW = Field("sentence", "string_b", "What to draw")
_LEARNING = [
    Field("train", CHECK), Field("size", "value", "Picture size"), Field("train", "steps", "Steps"),
    Field("train", TRAINING),
]
_SIDES = [Field("noise", "width", "Width"), Field("noise", "height", "Height")]
_DELTA = Field("delta", "sara_name", "Delta")
_STRENGTHS = ("no strength", "half", "whole", "more")

APPS = {
    TRAIN_A_STYLE: App(
        [_MODEL, Field("pictures", GALLERY), Field("trigger", "value", "Trigger word"), _TO_DRAW, *_LEARNING],
        ["picture"],
    ),
    LEARN_A_SUBJECT: App(
        [
            _MODEL, Field("pictures", GALLERY), Field("trigger", "value", "Trigger word and kind"),
            Field("kind", "text", "Its kind, without the trigger word"),
            Field("kind noise", "batch_size", "How many others of its kind are drawn first"), _TO_DRAW, *_LEARNING,
        ],
        ["picture"],
    ),
    "Use a delta": App(
        [_MODEL, Field("delta", CARDS), _TO_DRAW, Field("negative", "text", "What not to draw"), *_SIDES,
         Field("seed", "value", "Seed")],
        ["picture", "plain picture"],
    ),
    "Compare strengths": App(
        [_MODEL, _DELTA, _TO_DRAW, *_SIDES,
         *(Field(key, "value", title) for key, title in zip(_STRENGTHS, STRENGTHS))],
        ["picture"],
    ),
    "Merge two styles": App(
        [_MODEL, Field("first", "sara_name", "First style"), Field("second", "sara_name", "Second style"),
         Field("merge", "weights", "How much of each"),
         Field("prompt", "text", "What to draw"), *_SIDES, Field("sampler", "seed", "Seed")],
        ["picture", "overlap"],
    ),
    "Bake a delta": App(
        [_DELTA, Field("bake", "ckpt_name", "Model"), Field("bake", "strength", "Strength"),
         Field("bake", "filename_prefix", "Name of the new model")],
        ["bake"],
    ),
    "Convert a LoRA": App(
        [Field("convert", "file_name", "LoRA"), Field("convert", "base_name", "The model that it was made for"),
         Field("convert", "to", "To"), Field("convert", "filename_prefix", "Name of the new file")],
        ["report"],
    ),
}  # fmt: skip


def as_app(name: str, graph: Graph, workflow: Workflow, object_info: ObjectInfo) -> Workflow:
    """A copy of a graph's saved workflow that opens as an app."""
    app, made = APPS[name], copy.deepcopy(workflow)
    nodes = dict(zip(graph.nodes, made["nodes"], strict=True))
    chosen = []
    for key, widget, label in app.fields:
        node, drawn = nodes[key], [{"height": GALLERY_HEIGHT}] if widget == GALLERY else []
        chosen.append([node["id"], widget, *drawn])
        if label:
            kind, _ = inputs(object_info[node["type"]])[widget]
            kind = "COMBO" if isinstance(kind, list) else kind
            slot = {"label": label, "name": widget, "type": kind, "widget": {"name": widget}, "link": None}
            node["inputs"].append(slot)  # the last, so that no wire ends elsewhere
    made["extra"]["linearMode"] = True
    made["extra"]["linearData"] = {"inputs": chosen, "outputs": [nodes[key]["id"] for key in app.outputs]}
    return made
