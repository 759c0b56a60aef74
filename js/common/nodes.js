// What our nodes get in the page: elements inside them, in the classic renderer and in "Nodes 2.0" alike.

import { app } from "../../../scripts/app.js";

// Calls `made(node)` for every node of a class, new or from a workflow, when its widgets exist.
export function onNode(extension, nodeClass, made) {
  app.registerExtension({
    name: `SaRA.${extension}`,
    nodeCreated(node) {
      if (node.comfyClass === nodeClass) made(node);
    },
  });
}

// An element at the bottom of a node. It belongs to the page alone: it is in no workflow file and in no prompt.
// minHeight: in pixels of the graph
export function addPanel(node, name, panel, minHeight) {
  const widget = node.addDOMWidget(name, "sara", panel, {
    serialize: false, hideOnZoom: false, getMinHeight: () => minHeight, getMaxHeight: undefined,
  });
  widget.serialize = false;  // of the workflow; the option is about the prompt
  return widget;
}

// The widget of an input, by the input's name.
export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

// How the server calls this node in a prompt: "5", or "12:5" for node 5 inside the subgraph node 12.
export function executionId(node) {
  return idInPrompt(node, app.rootGraph ?? app.graph) ?? String(node.id);
}

// The node that the server calls so; undefined if there is none.
export function nodeInPrompt(id) {
  return nodesTo(id).at(-1);
}

// The subgraph nodes around a node that the server calls so, the outermost first.
export function nodesAround(id) {
  return nodesTo(id).slice(0, -1).filter(Boolean);
}

function nodesTo(id) {
  let graph = app.rootGraph ?? app.graph;
  return id.split(":").map((own) => {
    const node = graph?.getNodeById(own) ?? undefined;
    graph = node?.subgraph;
    return node;
  });
}

function idInPrompt(node, graph, before = "") {
  for (const other of graph?._nodes ?? graph?.nodes ?? []) {
    if (other === node) return `${before}${other.id}`;
    const found = other.subgraph && idInPrompt(node, other.subgraph, `${before}${other.id}:`);
    if (found) return found;
  }
  return undefined;
}

// Calls `call` with the same, whenever a method of a node or a widget has been called; `object` may be missing.
export function after(object, method, call) {
  if (!object) return;
  const before = object[method];
  object[method] = function (...given) {
    const answer = before?.apply(this, given);
    call(...given);
    return answer;
  };
}

// In both renderers, and out of the way of the layout; the value stays what the prompt has.
export function hide(widget, isHidden = true) {
  if (!widget) return;
  widget.hidden = isHidden;
  widget.options ??= {};
  widget.options.hidden = isHidden;
}

// Whether the author of the workflow has chosen this widget for App mode. Of older frontends, and in files, an entry is
// [node, widget, …]; of newer ones the first is "graph:node:widget".
export function isInAppMode(node, name) {
  const inputs = (app.rootGraph ?? app.graph)?.extra?.linearData?.inputs ?? [];
  return inputs.some(([place, widget]) => (String(place) === String(node.id) && widget === name)
    || String(place).endsWith(`:${node.id}:${name}`));
}

// Makes all that has been set since the last time one change of the page's undo, and lets whoever follows the graph know.
export function noteChange() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);  // the latter in older frontends
}
