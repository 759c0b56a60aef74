"""The example workflows as they look when they are opened, and found: nothing in red, nothing on top of anything."""

import json

import pytest

from devtools.comfyui.install import ROOT
from devtools.templates.cards import SIZE as CARD_SIZE
from devtools.templates.graphs import GRAPHS, LEARN_A_SUBJECT, TRAIN_A_STYLE

FOLDER = ROOT / "example_workflows"
# A name in the page's search for what people come with.
SEARCHED = "lora train"

# Of each node: what it covers, title bar included. Of each wire: points along it, and the nodes at its ends.
MEASURE = """() => {
  const boxes = app.graph.nodes.map((node) => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`)
    const [x, y, width, height] = [...node.pos, ...node.size]
    const drawn = element ? element.getBoundingClientRect().height / app.canvas.ds.scale - 30 : height
    return { id: node.id, type: node.type, box: [x, y - 30, width, Math.max(height, drawn) + 30] }
  })
  const wires = [...app.graph.links.values()].map((link) => {
    const [from, to] = [app.graph.getNodeById(link.origin_id), app.graph.getNodeById(link.target_id)]
    const [a, d] = [from.getConnectionPos(false, link.origin_slot), to.getConnectionPos(true, link.target_slot)]
    const reach = Math.hypot(d[0] - a[0], d[1] - a[1]) / 4
    const points = Array.from({ length: 60 }, (_, i) => {
      const t = i / 59, u = 1 - t
      const along = (p, q, r, s) => u * u * u * p + 3 * u * u * t * q + 3 * u * t * t * r + t * t * t * s
      return [along(a[0], a[0] + reach, d[0] - reach, d[0]), along(a[1], a[1], d[1], d[1])]
    })
    return { ends: [link.origin_id, link.target_id], points }
  })
  return { boxes, wires }
}"""


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_nothing_is_missing_and_nothing_lies_on_anything(page, name):
    file = FOLDER / f"{name}.json"
    page.load(file)
    page.show()
    assert page.node_types() == sorted(node["type"] for node in json.loads(file.read_bytes())["nodes"])
    assert not page.page.get_by_text("is missing").count() and not page.page.get_by_text("errors found").count()
    measured = page.page.evaluate(MEASURE)
    for a in measured["boxes"]:
        for b in measured["boxes"]:
            assert a["id"] >= b["id"] or not _overlap(a["box"], b["box"]), (a, b)
    for wire in measured["wires"]:
        for node in measured["boxes"]:
            if node["id"] not in wire["ends"]:
                assert not any(_inside(point, node["box"]) for point in wire["points"]), (node, wire["ends"])


def test_the_search_for_lora_training_finds_the_two_that_train(classic_page):
    page = classic_page.page
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_placeholder("Search").last.fill(SEARCHED)
    for name in (TRAIN_A_STYLE, LEARN_A_SUBJECT):
        page.get_by_text(name).first.wait_for()
    drawn = "width => [...document.images].filter((image) => image.naturalWidth === width).length >= 2"
    page.wait_for_function(drawn, arg=CARD_SIZE[0])


def test_both_pictures_of_a_comparison_are_drawn_from_one_seed(classic_page):
    classic_page.load(FOLDER / "Use a delta.json")
    classic_page.set_widget(classic_page.node("PrimitiveInt"), "value", 77)
    prompt = json.loads(classic_page.page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)"))
    samplers = [node for node in prompt.values() if node["class_type"] == "KSampler"]
    first, second = (prompt[node["inputs"]["seed"][0]] for node in samplers)
    assert first is second and first["inputs"]["value"] == 77


def test_every_node_of_ours_is_in_an_example():
    workflows = [json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.json")]
    used = {node["type"] for workflow in workflows for node in workflow["nodes"]}
    assert {path.stem for path in (ROOT / "js" / "docs").glob("*.md")} <= used


def test_the_measure_sees_what_lies_on_something():
    assert _overlap([0, 0, 10, 10], [9, 9, 5, 5]) and not _overlap([0, 0, 10, 10], [10, 0, 5, 5])
    assert _inside([5, 5], [0, 0, 10, 10]) and not _inside([0, 5], [0, 0, 10, 10])


def _overlap(a, b):
    return all(a[axis] < b[axis] + b[axis + 2] and b[axis] < a[axis] + a[axis + 2] for axis in (0, 1))


def _inside(point, box):
    return all(box[axis] < point[axis] < box[axis] + box[axis + 2] for axis in (0, 1))
