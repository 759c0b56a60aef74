"""Writes example_workflows: builds each graph in ComfyUI's own page, saves what the page exports, and draws its card.

Needs Chromium (see devtools/browser.py), and the interpreter that `python dev.py host --python` prints:

    python -m devtools.templates.build
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..browser import NONE_FOUND, chromium, find_chromium
from ..comfyui.install import ROOT, HostError, prepare
from ..comfyui.server import Server
from .apps import APPS, as_app
from .cards import CARDS
from .graphs import FILE_CHOOSERS, GRAPHS, Graph, Node
from .ui_workflow import CONTROL, Workflow, default, to_prompt, widget_names

FOLDER = ROOT / "example_workflows"
TIMEOUT = 180_000  # ms

# In the page's units: a node's title bar above its position, a group's title, and the room around its nodes.
NODE_TITLE, GROUP_TITLE, PADDING = 30, 40, 10
# Of nodes as they are by default, so that a theme makes them light or dark, notes too; and of groups, whose titles are
# to be read in both.
NOTE_COLOUR, NOTE_GROUND, GROUP_COLOUR, GROUP_TYPE = "#333", "#353535", "#4b76b3", 28
NOTE = "MarkdownNote"

IS_READY = "() => window.app?.graph && window.LiteGraph?.registered_node_types?.SaRATrain"

# As a string: undefined would come out of the page as null.
BUILD = """async ({ nodes, links, groups, look }) => {
  const graph = app.graph
  graph.clear()
  for (const [title, bounding] of groups) {
    const group = new LGraphGroup(title)
    graph.add(group)
    group.pos = bounding.slice(0, 2)
    group.size = bounding.slice(2)
    group.color = look.group
    group.font_size = look.type
  }
  const made = {}
  for (const [key, { type, at, size, widgets, title }] of Object.entries(nodes)) {
    const node = (made[key] = LiteGraph.createNode(type))
    graph.add(node)
    if (title) node.title = title
    if (type === look.note) Object.assign(node, { color: look.title, bgcolor: look.ground })
    for (const [name, value] of Object.entries(widgets)) {
      const widget = name ? node.widgets.find((candidate) => candidate.name === name) : node.widgets[0]
      if (!widget) throw new Error(`${type} has no widget ${name}`)
      widget.value = value
    }
    node.pos = at
    node.setSize(size)
  }
  for (const [from, output, to, input] of links) {
    const [outSlot, inSlot] = [made[from].findOutputSlot(output), made[to].findInputSlot(input)]
    if (outSlot < 0 || inSlot < 0 || !made[from].connect(outSlot, made[to], inSlot))
      throw new Error(`${from}.${output} cannot be connected to ${to}.${input}`)
  }
  const { workflow, output } = await app.graphToPrompt()
  return JSON.stringify({ workflow, prompt: output })
}"""


def end(node: Node) -> tuple[int, int]:
    """Right and bottom of a node that has grown as far as it may."""
    return node.at[0] + node.size[0], node.at[1] + node.size[1] + node.room


def bounds(graph: Graph, keys: Sequence[str]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of some of the graph's nodes, title bars and the room they need included."""
    nodes = [graph.nodes[key] for key in keys]
    left, top = (min(node.at[axis] for node in nodes) for axis in (0, 1))
    right, bottom = (max(edges) for edges in zip(*map(end, nodes), strict=True))
    return left, top - NODE_TITLE, right, bottom


def frame(graph: Graph, keys: Sequence[str]) -> tuple[int, int, int, int]:
    """Left, top, width and height of a group around some of the graph's nodes."""
    left, top, right, bottom = bounds(graph, keys)
    top -= GROUP_TITLE
    return left - PADDING, top - PADDING, right - left + 2 * PADDING, bottom - top + 2 * PADDING


def all_widgets(node: Node, object_info: dict) -> dict[str, Any]:
    """A node's widgets with their values: what the graph does not say, at the default. Left to itself, the page gives
    a new node the values that an earlier one of the same number had."""
    if node.type in FILE_CHOOSERS or node.type not in object_info:
        return node.widgets
    info = object_info[node.type]
    names = (name for name in widget_names(info) if name != CONTROL)
    return {**{name: default(name, info) for name in names}, **node.widgets}


def export(page, name: str, graph: Graph, object_info: dict) -> Workflow:
    """Build a graph in the page and return what the page saves of it.

    Raises:
        AssertionError: the page would queue another prompt than `to_prompt` makes of the saved workflow.
    """
    groups = [(title, frame(graph, keys)) for title, keys in graph.groups.items()]
    nodes = {key: {**node._asdict(), "widgets": all_widgets(node, object_info)} for key, node in graph.nodes.items()}
    look = {
        "group": GROUP_COLOUR, "type": GROUP_TYPE, "note": NOTE, "title": NOTE_COLOUR, "ground": NOTE_GROUND,
    }  # fmt: skip
    built = json.loads(page.evaluate(BUILD, {"nodes": nodes, "links": graph.links, "groups": groups, "look": look}))
    workflow, queued = built["workflow"], built["prompt"]
    for node in queued.values():
        node.pop("_meta")
    assert queued == to_prompt(workflow, object_info), f"{name}: {queued}"
    for saved, node in zip(workflow["nodes"], graph.nodes.values(), strict=True):
        if node.type in FILE_CHOOSERS:
            del saved["widgets_values"]
    # Neither chance nor this screen's size: the same graph gives the same file. To what has no id the page gives one at
    # each opening, so that none shows what an earlier one trained.
    del workflow["id"]
    workflow["extra"].pop("ds", None)
    return workflow


def open_page(browser, address: str):
    """ComfyUI's page, ready, with an empty graph in front."""
    page = browser.new_page()
    page.set_default_timeout(TIMEOUT)
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_function(IS_READY)
    # A first visit opens the templates, some time after the page is ready.
    page.wait_for_timeout(4000)
    page.keyboard.press("Escape")
    return page


def _write(name: str, workflow: Workflow, card: Image.Image) -> None:
    text = json.dumps(workflow, indent=2, ensure_ascii=False)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8", newline="\n")
    card.save(FOLDER / f"{name}.jpg", quality=88)
    print(FOLDER / f"{name}.json")


def main() -> int:
    browser_path = find_chromium()
    if browser_path is None:
        raise HostError(f"The example workflows cannot be built: {NONE_FOUND}.")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        # Of a menu without a file the page would queue no value at all.
        for file in ("models/checkpoints/model.safetensors", "output/sara/delta.safetensors"):
            Path(folder, file).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, file).touch()
        with Server(prepare(), Path(folder)) as server, chromium(browser_path) as browser:
            page = open_page(browser, server.client.address)
            object_info = server.client.object_info()
            for name, graph in GRAPHS.items():
                workflow = export(page, name, graph, object_info)
                _write(name, workflow, CARDS[name]())
                if name in APPS:
                    _write(f"{name}.app", as_app(name, graph, workflow, object_info), CARDS[name]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
