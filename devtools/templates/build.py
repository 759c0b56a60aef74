"""Writes example_workflows: builds each graph in ComfyUI's own page, saves what the page exports, and a picture of it.

Needs Chromium and the package playwright, in any Python environment:

    python -m devtools.templates.build --browser /usr/bin/chromium
"""

import argparse
import json
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from ..comfyui.install import ROOT, prepare
from ..comfyui.server import Server
from .graphs import (
    CHECKPOINT, CLASS_FOLDER, DELTA, GRAPHS, SECOND_DELTA, STYLE_FOLDER, SUBJECT_FOLDER, TUNED, Graph,
)  # fmt: skip
from .ui_workflow import Workflow, to_prompt

FOLDER = ROOT / "example_workflows"
BROWSER_OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
TIMEOUT = 180_000  # ms

# In the page's units: a node's title bar above its position, a group's title, and the room around its nodes.
NODE_TITLE, GROUP_TITLE, PADDING = 30, 34, 10
MARGIN = 60

IS_READY = "() => window.app?.graph && window.LiteGraph?.registered_node_types?.SaRATrain"

# As a string: undefined would come out of the page as null.
BUILD = """async ({ nodes, links, groups }) => {
  const graph = app.graph
  graph.clear()
  for (const [title, bounding] of groups) {
    const group = new LGraphGroup(title)
    graph.add(group)
    group.pos = bounding.slice(0, 2)
    group.size = bounding.slice(2)
  }
  const made = {}
  for (const [key, { type, at, size, widgets, title, properties }] of Object.entries(nodes)) {
    const node = (made[key] = LiteGraph.createNode(type))
    graph.add(node)
    if (title) node.title = title
    Object.assign(node.properties, properties)
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

# Where the graph's corner is shown, and what is left free around it for the page's own bars, which are cut off.
SHOW = """([left, top, scale, border]) => {
  app.canvas.ds.scale = scale
  app.canvas.ds.offset = [border / scale - left, border / scale - top]
  app.canvas.setDirty(true, true)
}"""
SCALE, BORDER = 0.75, 300


def bounds(graph: Graph, keys: Sequence[str]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of some of the graph's nodes, title bars included."""
    nodes = [graph.nodes[key] for key in keys]
    left, top = (min(node.at[axis] for node in nodes) for axis in (0, 1))
    right, bottom = (max(node.at[axis] + node.size[axis] for node in nodes) for axis in (0, 1))
    return left, top - NODE_TITLE, right, bottom


def frame(graph: Graph, keys: Sequence[str]) -> tuple[int, int, int, int]:
    """Left, top, width and height of a group around some of the graph's nodes."""
    left, top, right, bottom = bounds(graph, keys)
    top -= GROUP_TITLE
    return left - PADDING, top - PADDING, right - left + 2 * PADDING, bottom - top + 2 * PADDING


def export(page, name: str, graph: Graph, object_info: dict) -> Workflow:
    """Build a graph in the page and return what the page saves of it.

    Raises:
        AssertionError: the page would queue another prompt than `to_prompt` makes of the saved workflow.
    """
    groups = [(title, frame(graph, keys)) for title, keys in graph.groups.items()]
    nodes = {key: node._asdict() for key, node in graph.nodes.items()}
    built = json.loads(page.evaluate(BUILD, {"nodes": nodes, "links": graph.links, "groups": groups}))
    workflow, queued = built["workflow"], built["prompt"]
    for node in queued.values():
        node.pop("_meta")
    assert queued == to_prompt(workflow, object_info), f"{name}: {queued}"
    # Neither chance nor this screen's size: the same graph gives the same file.
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
    workflow["extra"].pop("ds", None)
    return workflow


def picture(page, graph: Graph) -> bytes:
    """A JPEG of the graph that is open in the page."""
    left, top, right, bottom = bounds(graph, list(graph.nodes))
    left, top, right, bottom = left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN
    width, height = round((right - left) * SCALE), round((bottom - top) * SCALE)
    page.set_viewport_size({"width": width + 2 * BORDER, "height": height + 2 * BORDER})
    page.evaluate(SHOW, [left, top, SCALE, BORDER])
    page.wait_for_timeout(2000)
    clip = {"x": BORDER, "y": BORDER, "width": width, "height": height}
    return page.screenshot(type="jpeg", quality=80, clip=clip)


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


def prepare_files(base: Path) -> Path:
    """Empty files of the names in the graphs, so that no node is marked for a missing file; returns the checkpoints'
    folder."""
    checkpoints = base / "checkpoints"
    captions = [base / "input" / folder / "cat.txt" for folder in (STYLE_FOLDER, SUBJECT_FOLDER, CLASS_FOLDER)]
    deltas = [base / "output" / "sara" / name for name in (DELTA, SECOND_DELTA)]
    for file in (checkpoints / CHECKPOINT, checkpoints / TUNED, *deltas, *captions):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return checkpoints


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--browser", help="path of Chromium; without it, playwright's own")
    options = parser.parse_args(arguments)
    from playwright.sync_api import sync_playwright

    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        checkpoints = prepare_files(Path(folder))
        with Server(prepare(), Path(folder), model_paths={"checkpoints": checkpoints}) as server:
            browser = playwright.chromium.launch(executable_path=options.browser, args=BROWSER_OPTIONS)
            page = open_page(browser, server.client.address)
            object_info = server.client.object_info()
            for name, graph in GRAPHS.items():
                workflow = json.dumps(export(page, name, graph, object_info), indent=2, ensure_ascii=False)
                (FOLDER / f"{name}.json").write_text(workflow + "\n", encoding="utf-8", newline="\n")
                (FOLDER / f"{name}.jpg").write_bytes(picture(page, graph))
                print(FOLDER / f"{name}.json")
            browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
