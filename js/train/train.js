// SaRA Train gets a panel as soon as it has a run to show, and not before: until then the node is as large as ever.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { useStyle } from "../common/dom.js";
import { addPanel, after, executionId, isInAppMode, onNode } from "../common/nodes.js";
import { say } from "../common/words.js";
import { HEIGHT, heightFor, Panel } from "./panel.js";
import { follow, onRun, refresh, runOf, takeKept } from "./runs.js";
import { showAround } from "./subgraph_line.js";

const NODE = "SaRATrain", WIDGET = "sara_training";
const panels = new Map();  // node → its Panel, undefined as long as it has nothing to show

useStyle("panel.css", import.meta.url);
follow();
onRun(showAll);

onNode("Train", NODE, (node) => {
  panels.set(node, undefined);
  after(node, "onExecuted", (output) => output?.sara_run?.[0] && takeKept(output.sara_run[0]));
  after(node, "onRemoved", () => panels.delete(node));
  soon();
});

app.registerExtension({
  name: "SaRA.TrainRuns",
  afterConfigureGraph() {
    showInApps();
    soon();
  },
});

// A form leaves out what is not there when it is opened.
function showInApps() {
  for (const [node, panel] of panels) if (!panel && isInAppMode(node, WIDGET)) made(node);
}

// A page that is just being loaded has neither its graph's id yet, nor the name that the server calls it by.
let isDue = false;
function soon() {
  if (isDue) return;
  isDue = true;
  setTimeout(async () => {
    isDue = false;
    if (!panels.size) return;
    takeOutputs();
    showAll();
    await refresh();
    if (!api.clientId) api.addEventListener("status", refresh, { once: true });
  });
}

// What the page remembers of results, its own or those of a history that was opened.
function takeOutputs() {
  for (const node of panels.keys()) {
    const kept = app.nodeOutputs?.[executionId(node)]?.sara_run?.[0];
    if (kept?.run) takeKept(kept);
  }
}

function showAll() {
  for (const [node, panel] of panels) {
    const run = node.graph && runOf(node);
    if (!run) continue;
    show(node, panel ?? made(node), run);
    showAround(node, run);
  }
}

function made(node) {
  const panel = new Panel(node);
  panel.widget = addPanel(node, WIDGET, panel.element, HEIGHT);
  panel.widget.label = say("Training");
  panel.widget.options.getMinHeight = () => panel.height ?? HEIGHT;
  panels.set(node, panel);
  return panel;
}

function show(node, panel, run) {
  const height = heightFor(run);
  if (panel.height !== height) {
    panel.height = height;
    makeRoom(node);
  }
  panel.show(run);
}

// The node grows only as far as it lacks room: whoever has drawn it tall already keeps its size.
function makeRoom(node) {
  const [, needed] = node.computeSize();
  if (node.size[1] < needed) node.setSize([node.size[0], needed]);
  node.setDirtyCanvas?.(true, true);
}
