"""Writes example_workflows: builds each graph in ComfyUI's own page, saves what the page exports, and a picture of it.

Needs Chromium and the package playwright (with its own browser or --browser):

    python -m devtools.templates --browser /usr/bin/chromium
"""

import argparse
import json
import sys
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from . import template_graphs
from .host import ROOT, prepare
from .server import Server
from .template_graphs import GRAPHS, Graph
from .ui_workflow import Workflow, to_prompt

FOLDER = ROOT / "example_workflows"
# No picture of a screen, which would differ from machine to machine, only of the graph.
PICTURE_SIZE = {"width": 1200, "height": 760}
BROWSER_OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

IS_READY = "() => window.app?.graph && window.LiteGraph?.registered_node_types?.SaRATrain"

BUILD = """async ({ nodes, links, groups, id }) => {
  const graph = app.graph
  graph.clear()
  graph.id = id
  const made = {}
  for (const [key, { type, at, widgets, title, size, properties }] of Object.entries(nodes)) {
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
    if (size) node.setSize(size)
  }
  for (const [from, output, to, input] of links) {
    const [outSlot, inSlot] = [made[from].findOutputSlot(output), made[to].findInputSlot(input)]
    if (outSlot < 0 || inSlot < 0 || !made[from].connect(outSlot, made[to], inSlot))
      throw new Error(`${from}.${output} cannot be connected to ${to}.${input}`)
  }
  for (const [title, members] of Object.entries(groups)) {
    const group = new LGraphGroup(title)
    graph.add(group)
    group.resizeTo(members.map((key) => made[key]), 20)
  }
  await new Promise(requestAnimationFrame)
  const { workflow, output } = await app.graphToPrompt()
  return { workflow, prompt: output }
}"""
