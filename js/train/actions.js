// What somebody does after a training, on the nodes of the open workflow.

import { app } from "../../../scripts/app.js";
import { widgetOf } from "../common/nodes.js";
import { say } from "../common/words.js";

const LOADER = "SaRALoader";
const GAP = 40;  // pixels of the graph between two nodes

// Chooses a snapshot under resume, and, if they are given, how many steps the run is to have.
export async function goOn(node, snapshot, steps) {
  const names = await offer(widgetOf(node, "resume"));
  if (!names.includes(snapshot)) throw new Error(say("the snapshot is not there any more. Choose another one under resume."));
  if (steps) set(node, widgetOf(node, "steps"), steps);
  set(node, widgetOf(node, "resume"), snapshot);
}

// Chooses a delta in the SaRA Loader nearest to the node, or adds one beside it, on the same model; whether it is new.
export async function drawWith(node, delta) {
  const [found] = node.graph.nodes.filter((other) => other.type === LOADER).sort((a, b) => distance(a, node) - distance(b, node));
  const loader = found ?? added(node);
  const names = await offer(widgetOf(loader, "sara_name"));
  if (!names.includes(delta)) throw new Error(say("the delta is not there any more. Choose another one in SaRA Loader."));
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

// The names that a menu offers; asked for anew, because files may have come and gone since the page last did.
async function offer(widget) {
  await app.refreshComboInNodes();
  const values = widget.options.values;
  return typeof values === "function" ? values(widget) : values;
}

function set(node, widget, value) {
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  node.setDirtyCanvas?.(true, true);
}
