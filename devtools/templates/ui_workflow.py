"""Workflows as ComfyUI's page saves them: their widgets by name, and the prompt that the page would queue."""

from collections.abc import Iterator, Mapping
from typing import Any

Workflow = dict[str, Any]
ObjectInfo = Mapping[str, Any]

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
# What the page appends to such an input: its value is saved, but not queued.
GROWING = "COMFY_AUTOGROW_V3"
CONTROL = "control_after_generate"
MUTED = 2


def inputs(info: Mapping[str, Any]) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """Name → (type, options) of a node's inputs, in the page's order. info: the node's part of /object_info."""
    named = {}
    for kind in ("required", "optional"):
        for name, spec in info["input"].get(kind, {}).items():
            named[name] = (spec[0], spec[1] if len(spec) > 1 else {})
    return named


def slots(info: Mapping[str, Any]) -> dict[str, Any]:
    """Name → type of everything that a saved node can have as an input; one that grows can have many."""
    kinds = {}
    for name, (kind, options) in inputs(info).items():
        if kind == GROWING:
            template = options["template"]
            (grown, *_), = template["input"]["required"].values()
            parts = template.get("names") or [f"{template['prefix']}{number}" for number in range(template["max"])]
            kinds.update({f"{name}.{part}": grown for part in parts})
        else:
            kinds[name] = kind
    return kinds


def widget_names(info: Mapping[str, Any]) -> list[str]:
    """Names of what the page saves in a node's ``widgets_values``, in order."""
    names = []
    for name, (kind, options) in inputs(info).items():
        # Older nodes give a menu as the list of its entries.
        if (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput"):
            names.append(name)
            if options.get(CONTROL):
                names.append(CONTROL)
    return names


def default(name: str, info: Mapping[str, Any]) -> Any:
    """The value of a node's new widget, where its node says none: of a menu the first entry, None of an empty one, and
    no letters of a text."""
    kind, options = inputs(info)[name]
    entries = kind if isinstance(kind, list) else options.get("options", ())
    return options.get("default", "" if kind == "STRING" else next(iter(entries), None))


def widgets(node: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """Name → value of a saved node's widgets; of one that was saved without values, the page's own. Optional ones that
    the node got later are not among them: the page gives these their defaults.

    Raises:
        ValueError: the node was saved with other widgets than it has now.
    """
    names = widget_names(info)
    if "widgets_values" not in node:
        return {name: default(name, info) for name in names}
    values = node["widgets_values"]
    optional = info["input"].get("optional", {})
    if len(values) > len(names) or any(name not in optional for name in names[len(values) :]):
        raise ValueError(f"{node['type']} has {len(names)} widgets ({', '.join(names)}), not {len(values)}: {values}")
    return dict(zip(names, values))


def executed_nodes(workflow: Workflow, object_info: ObjectInfo) -> Iterator[Mapping[str, Any]]:
    """The nodes that take part in a run: neither notes, which only the page knows, nor muted ones."""
    return (node for node in workflow["nodes"] if node["type"] in object_info and node["mode"] != MUTED)


def to_prompt(workflow: Workflow, object_info: ObjectInfo) -> dict[str, dict[str, Any]]:
    """The API format of a saved workflow, as the page makes it; workflows with subgraphs are not supported."""
    origin = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in executed_nodes(workflow, object_info):
        values = widgets(node, object_info[node["type"]])
        values.pop(CONTROL, None)
        linked = {slot["name"]: origin[slot["link"]] for slot in node["inputs"] if slot.get("link") is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": {**values, **linked}}
    return prompt


def fill(workflow: Workflow, object_info: ObjectInfo, values: Mapping[str, Mapping[str, Any]]) -> None:
    """Set widgets in a saved workflow. values: title of a node, or its type if it has no own title → name → value.

    Raises:
        KeyError: no such node or widget.
    """
    nodes = {node.get("title", node["type"]): node for node in workflow["nodes"]}
    for title, new in values.items():
        names = widget_names(object_info[nodes[title]["type"]])
        if unknown := set(new) - set(names):
            raise KeyError(f"{title} has no widget {', '.join(sorted(unknown))}, only {', '.join(names)}.")
        saved = widgets(nodes[title], object_info[nodes[title]["type"]])
        nodes[title]["widgets_values"] = list({**saved, **new}.values())
