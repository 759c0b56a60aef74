// What somebody does after a training, on the nodes of the open workflow.

import { app } from "../../../scripts/app.js";
import { widgetOf } from "../common/nodes.js";

const LOADER = "SaRALoader";
const GAP = 40;  // pixels of the graph between two nodes

// Chooses a snapshot under resume, and, if they are given, how many steps the run is to have.
export async function goOn(node, snapshot, steps) {
  await offer(widgetOf(node, "resume"), snapshot);
  if (steps) set(node, widgetOf(node, "steps"), steps);
  set(node, widgetOf(node, "resume"), snapshot);
}

// Chooses a delta in the SaRA Loader nearest to the node, or adds one beside it, on the same model; whether it is new.
export async function drawWith(node, delta) {
  const [found] = node.graph.nodes.filter((other) => other.type === LOADER).sort((a, b) => distance(a, node) - distance(b, node));
  const loader = found ?? added(node);
  await offer(widgetOf(loader, "sara_name"), delta);
  set(loader, widgetOf(loader, "sara_name"), delta);
  app.canvas.selectNode?.(loader);
  app.graph.setDirtyCanvas?.(true, true);
  return !found;
}

function added(node) {
  const graph = node.graph, loader = window.LiteGraph.createNode(LOADER);
  graph.add(loader);
  loader.pos = freePlace(node, loader);
  const link = graph.links.get?.(node.inputs[node.findInputSlot("model")]?.link);
  const origin = link && graph.getNodeById(link.origin_id);
  origin?.connect(link.origin_slot, loader, loader.findInputSlot("model"));
  return loader;
}

// Beside the node, below whatever is there already.
function freePlace(node, added) {
  const x = node.pos[0] + node.size[0] + GAP;
  let y = node.pos[1];
  const others = node.graph.nodes.filter((other) => other !== added
    && other.pos[0] < x + added.size[0] && other.pos[0] + other.size[0] > x);
  for (const other of others.sort((a, b) => a.pos[1] - b.pos[1])) {
    const isInTheWay = other.pos[1] - GAP < y + added.size[1] && other.pos[1] + other.size[1] + GAP > y;
    if (isInTheWay) y = other.pos[1] + other.size[1] + GAP;
  }
  return [x, y];
}

function distance(one, other) {
  return Math.hypot(one.pos[0] - other.pos[0], one.pos[1] - other.pos[1]);
}

// Files that the server has written since the page last asked are not in its lists yet.
async function offer(widget, name) {
  const values = widget.options.values;
  if (!(typeof values === "function" ? values(widget) : values).includes(name)) await app.refreshComboInNodes();
}

function set(node, widget, value) {
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  node.setDirtyCanvas?.(true, true);
}
