// SaRA Train's own widgets, without what does not count just now, and with a rate that says what it means. Values stay
// what they are.

import { app } from "../../../scripts/app.js";
import { widgetOf } from "../common/nodes.js";
import { say } from "../common/words.js";
import { valueOf } from "./trace.js";

const AMOUNTS = ["density", "count", "threshold"];

// Of the three, only the one that select_by has chosen; all of them where the page cannot know which that is.
export function showAmount(node) {
  const chosen = valueOf(node, "select_by");
  for (const name of AMOUNTS) {
    const widget = widgetOf(node, name);
    if (!widget) continue;
    const isLinked = node.inputs?.some((input) => input.widget?.name === name && input.link != null);
    const isHidden = AMOUNTS.includes(chosen) && name !== chosen && !isLinked && !isInAppMode(node, name);
    widget.hidden = isHidden;
    widget.options ??= {};
    widget.options.hidden = isHidden;
  }
  node.setDirtyCanvas?.(true, true);
}

// 0 takes the paper's rule, and looks wrong as a rate. The widget's digits stay: the page rounds what is typed to them.
export function showRate(node) {
  const widget = widgetOf(node, "learning_rate");
  if (!widget) return;
  if (widget.saraLabel === undefined) widget.saraLabel = widget.label ?? null;
  const name = widget.saraLabel ?? widget.name;
  widget.label = widget.value === 0 ? say("{name} (paper's rule)", { name }) : name;
}

// App mode shows the widgets that its author has chosen. The first of an entry is the node, or "graph:node:widget".
function isInAppMode(node, name) {
  const inputs = (app.rootGraph ?? app.graph)?.extra?.linearData?.inputs ?? [];
  return inputs.some(([place, widget]) => (String(place) === String(node.id) && widget === name)
    || String(place).endsWith(`:${node.id}:${name}`));
}
