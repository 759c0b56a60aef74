// What is at the other end of a node's wires, before anything runs: across the borders of subgraphs, too.

import { app } from "../../../scripts/app.js";
import { widgetOf } from "./nodes.js";

// The node that an input comes from, by its index; undefined for none.
export function origin(node, index) {
  const id = node.inputs?.[index]?.link;
  const link = id == null ? undefined : linkOf(node.graph, id);
  return link && owner(node.graph, link);
}

function owner(graph, link) {
  if (graph.inputNode && link.origin_id === graph.inputNode.id) {
    const around = subgraphNode(app.rootGraph ?? app.graph, graph);
    return around && origin(around, link.origin_slot);
  }
  const node = graph.getNodeById(link.origin_id);
  const inner = node?.subgraph?.outputNode?.slots?.[link.origin_slot]?.linkIds?.[0];
  if (!node?.subgraph) return node ?? undefined;
  const within = inner == null ? undefined : linkOf(node.subgraph, inner);
  return within && owner(node.subgraph, within);
}

function linkOf(graph, id) {
  return graph?.getLink?.(id) ?? graph?.links?.get?.(id) ?? graph?.links?.[id];
}

// The node that stands for a subgraph, in the graph that it is used in.
function subgraphNode(graph, subgraph) {
  for (const node of graph?._nodes ?? graph?.nodes ?? []) {
    if (node.subgraph === subgraph) return node;
    const found = node.subgraph && subgraphNode(node.subgraph, subgraph);
    if (found) return found;
  }
  return undefined;
}

// The widget that decides an input's value: its own, or that of the primitive node that is connected to it; undefined
// where anything else is.
export function deciding(node, name) {
  const index = node.inputs?.findIndex((input) => (input.widget?.name ?? input.name) === name && input.link != null) ?? -1;
  if (index < 0) return widgetOf(node, name);
  const from = origin(node, index);
  return from && /^Primitive/.test(from.comfyClass ?? from.type) ? widgetOf(from, "value") : undefined;
}

// What that widget says.
export function valueOf(node, name) {
  return deciding(node, name)?.value;
}
