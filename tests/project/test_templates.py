"""What a person finds in ComfyUI's page (examples, help pages, translations) agrees with the real nodes."""

import ast
import asyncio
import json
import re
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from devtools.templates.apps import APPS, as_app
from devtools.templates.build import all_widgets
from devtools.templates.cards import CARDS
from devtools.templates.graphs import FILE_CHOOSERS, GRAPHS
from devtools.templates.ui_workflow import (
    CONTROL,
    executed_nodes,
    fill,
    inputs,
    slots,
    to_prompt,
    widget_names,
    widgets,
)

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "example_workflows"
HELP = ROOT / "js" / "docs"
LOCALES = ROOT / "locales"
NOTES = {"Note", "MarkdownNote"}
OFFERED = {*GRAPHS, *(f"{name}.app" for name in APPS)}
# The type of an input that takes every output; of one that takes what the other inputs take.
ANYTHING = "*"
MATCHED = "COMFY_MATCHTYPE_V3"


def _read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def _get(server, path):
    """The bytes that the page gets from an address of the server."""
    with urllib.request.urlopen(server.client.address + urllib.parse.quote(path)) as response:
        return response.read()


@pytest.fixture(scope="module")
def info(server):
    return server.client.object_info()


@pytest.fixture(scope="module")
def own_nodes(info):
    return {name for name, node in info.items() if node["python_module"].startswith("custom_nodes.")}


@pytest.fixture(params=sorted(GRAPHS))
def name(request):
    return request.param


@pytest.fixture
def workflow(name):
    return _read(TEMPLATES / f"{name}.json")


def test_every_graph_is_an_example_with_a_picture():
    files = {path.name for path in TEMPLATES.iterdir()}
    assert files == {f"{name}.{ending}" for name in OFFERED for ending in ("json", "jpg")} and set(CARDS) == set(GRAPHS)
    for picture in TEMPLATES.glob("*.jpg"):
        data = picture.read_bytes()
        assert data.startswith(b"\xff\xd8") and len(data) < 200_000, picture.name


def test_the_host_offers_the_examples(server):
    offered = json.loads(_get(server, "/workflow_templates"))
    (pack,) = [pack for pack, names in offered.items() if set(names) >= set(GRAPHS)]
    assert set(offered[pack]) == OFFERED
    for file in TEMPLATES.iterdir():
        assert _get(server, f"/api/workflow_templates/{pack}/{file.name}") == file.read_bytes()


def test_no_opening_of_an_example_is_taken_for_an_earlier_one():
    """The page gives a workflow without an id its own; a training's panel belongs to that id."""
    assert not [file.name for file in TEMPLATES.glob("*.json") if "id" in _read(file)]


def test_the_committed_files_are_those_of_the_graphs(name, workflow, info):
    """Run `python -m devtools.templates.build` after changing a graph."""
    graph = GRAPHS[name]
    saved = list(zip(graph.nodes.items(), workflow["nodes"], strict=True))
    for (key, node), in_file in saved:
        assert (in_file["type"], tuple(in_file["pos"]), tuple(in_file["size"])) == (node.type, node.at, node.size), key
        if node.type in FILE_CHOOSERS:
            assert not node.widgets
        elif node.type in NOTES:
            assert in_file["widgets_values"] == list(node.widgets.values())
        else:
            saved_values = widgets(in_file, info[node.type])
            saved_values.pop(CONTROL, None)
            expected = all_widgets(node, info)
            expected.pop(CONTROL, None)
            assert saved_values == expected, key
    key_of = {in_file["id"]: key for (key, _), in_file in saved}
    slots = {in_file["id"]: in_file for _, in_file in saved}
    links = {
        (key_of[a], slots[a]["outputs"][out]["name"], key_of[b], slots[b]["inputs"][into]["name"])
        for _, a, out, b, into, _ in workflow["links"]
    }
    assert links == set(graph.links)
    assert [group["title"] for group in workflow["groups"]] == list(graph.groups)


@pytest.mark.parametrize("name", sorted(APPS))
def test_an_app_is_its_graph_with_a_form(name, info):
    graph, app = _read(TEMPLATES / f"{name}.json"), _read(TEMPLATES / f"{name}.app.json")
    assert app == as_app(name, GRAPHS[name], graph, info)
    assert app["extra"]["linearMode"] and app["extra"]["linearData"]["outputs"]
    assert to_prompt(app, info) == to_prompt(graph, info)


def test_nodes_exist_with_these_inputs_outputs_and_widgets(workflow, info):
    assert {node["type"] for node in workflow["nodes"]} <= set(info) | NOTES
    for node in executed_nodes(workflow, info):
        real = info[node["type"]]
        real_slots = slots(real)
        widgets(node, real)  # raises if their number differs
        for slot in node["inputs"]:
            kind = real_slots[slot["name"]]
            assert kind in (slot["type"], MATCHED) or (isinstance(kind, list) and slot["type"] == "COMBO")
        for slot, kind in zip(node["outputs"], real["output"], strict=True):
            assert kind in (slot["type"], MATCHED)
        assert [slot["name"] for slot in node["outputs"]] == real["output_name"]


def test_links_agree_with_the_slots_at_both_ends(workflow):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link, origin, output, target, into, kind in workflow["links"]:
        assert link in nodes[origin]["outputs"][output]["links"]
        assert nodes[target]["inputs"][into]["link"] == link
        assert nodes[origin]["outputs"][output]["type"] == kind
        assert nodes[target]["inputs"][into]["type"] in (kind, ANYTHING)
    ends = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
    assert sorted(ends) == sorted(link[0] for link in workflow["links"])


def test_nothing_lies_on_top_of_anything(workflow):
    """Title bars included, which lie above a node's position."""
    boxes = [(*node["pos"], *node["size"]) for node in workflow["nodes"]]
    for i, (x, y, width, height) in enumerate(boxes):
        for other_x, other_y, other_width, other_height in boxes[:i]:
            apart_x = x >= other_x + other_width or other_x >= x + width
            apart_y = y - 30 >= other_y + other_height or other_y - 30 >= y + height
            assert apart_x or apart_y, (x, y, other_x, other_y)


def test_nothing_is_missed_but_files_that_only_a_user_has(comfy, info, workflow):
    """There must be nothing else to complain about."""
    import execution

    _, _, _, errors = asyncio.run(execution.validate_prompt("", to_prompt(workflow, info), None))
    assert {node["class_type"] for node in errors.values()} <= FILE_CHOOSERS, errors


def test_what_a_user_must_choose_is_not_chosen_for_somebody_else(workflow):
    for node in workflow["nodes"]:
        assert node["type"] not in FILE_CHOOSERS or "widgets_values" not in node, node["type"]
        assert "models" not in node.get("properties", {}), "the page would offer to download a model that nobody needs"


def test_training_again_with_the_same_settings_is_not_repeated(workflow, info):
    """A seed that changes by itself after each run would train anew at every run."""
    for node in executed_nodes(workflow, info):
        assert widgets(node, info[node["type"]]).get("control_after_generate", "fixed") == "fixed"


def test_filling_in_names_the_node_and_the_widget(workflow, info):
    type_of_first = next(executed_nodes(workflow, info))
    title = type_of_first.get("title", type_of_first["type"])
    (widget, *_) = widget_names(info[type_of_first["type"]])
    fill(workflow, info, {title: {widget: "other"}})
    assert "other" in [node["inputs"].get(widget) for node in to_prompt(workflow, info).values()]
    with pytest.raises(KeyError, match="no widget nonsense"):
        fill(workflow, info, {title: {"nonsense": 1}})


def test_every_node_has_a_help_page_that_names_all_its_inputs_and_outputs(server, info, own_nodes):
    assert {path.stem for path in HELP.glob("*.md")} == own_nodes
    for node in own_nodes:
        pack = info[node]["python_module"].split(".")[1]
        page = _get(server, f"/extensions/{pack}/docs/{node}.md").decode()
        assert page.startswith(f"# {info[node]['display_name']}\n")
        explained = {name for item in re.findall(r"^- (`.*?):", page, re.M) for name in re.findall(r"`(\w+)`", item)}
        assert {*inputs(info[node]), *info[node]["output_name"]} <= explained, node


def _messages():
    """Every text in the shipped code, with … where a value is put in."""
    for path in sorted([*(ROOT / "sara_core").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.mark.parametrize("page", sorted(HELP.rglob("*.md")), ids=lambda page: page.relative_to(HELP).as_posix())
def test_help_pages_quote_real_messages(page):
    quoted = re.findall(r'^- "(.+?)"', page.read_text(encoding="utf-8"), re.M)
    assert quoted
    messages = list(_messages())
    for quote in quoted:
        pattern = ".*".join(re.escape(part) for part in quote.split("…"))
        assert any(re.search(pattern, message) for message in messages), quote


def _commands():
    """Id → label of every command of the page."""
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "js").glob("*.js"))
    return dict(re.findall(r'\{ id: "([^"]+)", label: "([^"]+)"', scripts))


OF_THE_HOST = sorted(path for path in LOCALES.rglob("*.json") if path.name != "help.json")


@pytest.mark.parametrize("path", OF_THE_HOST, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_translations_are_served_and_name_only_what_exists(path, server, info, own_nodes):
    served = json.loads(_get(server, "/i18n"))[path.parent.name]
    translated = _read(path)
    if path.name == "main.json":
        assert translated.items() <= served.items()
        sockets = {kind for node in own_nodes for kind in info[node]["output"]}
        assert set(translated) == {"dataTypes", "menuLabels"} and set(translated["dataTypes"]) <= sockets
        assert set(translated["menuLabels"]) == set(_commands().values())
        return
    if path.name == "commands.json":
        assert served["commands"] == translated
        assert set(translated) == {name.replace(".", "_") for name in _commands()}
        return
    assert path.name == "nodeDefs.json" and served["nodeDefs"] == translated
    assert set(translated) == own_nodes
    for node, words in translated.items():
        real = info[node]
        assert set(words) == {"display_name", "description", "inputs", "outputs"}
        assert set(words["inputs"]) == {*inputs(real), *widget_names(real)}
        assert set(words["outputs"]) == {str(i) for i in range(len(real["output"]))}


def test_a_workflow_from_before_an_optional_widget_is_read_and_others_are_not():
    info = {"input": {"required": {"a": ["INT", {}], "b": ["STRING", {}]}, "optional": {"c": [["x", "y"], {}]}}}
    assert widgets({"type": "T", "widgets_values": [1, "s"]}, info) == {"a": 1, "b": "s"}
    assert widgets({"type": "T", "widgets_values": [1, "s", "y"]}, info) == {"a": 1, "b": "s", "c": "y"}
    for values in ([1], [1, "s", "y", 3]):
        with pytest.raises(ValueError, match=r"T has 3 widgets \(a, b, c\), not"):
            widgets({"type": "T", "widgets_values": values}, info)
