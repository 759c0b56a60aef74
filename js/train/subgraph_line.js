// How a training goes, as a badge of each subgraph that it is in: on the node of a subgraph no panel can be. Only in the
// classic renderer: "Nodes 2.0" reads a node's badges once, and would go on showing the first of them.

import { executionId, nodesAround } from "../common/nodes.js";
import { phaseWords, timeWords } from "./wording.js";

const badges = new WeakMap();  // node of a subgraph → its badge

export function showAround(node, run) {
  const text = window.LiteGraph.vueNodesMode ? "" : [phaseWords(run), timeWords(run)].filter(Boolean).join(" · ");
  for (const around of nodesAround(executionId(node))) show(around, text);
}

function show(node, text) {
  const before = badges.get(node);
  if (!window.LGraphBadge || (before?.text ?? "") === text) return;
  const badge = new window.LGraphBadge({ text, fgColor: "#fff", bgColor: "#31568a" });
  badges.set(node, badge);
  node.badges = [...node.badges.filter((one) => one !== before), badge];
  node.setDirtyCanvas?.(true, true);
}
