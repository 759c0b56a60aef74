// SaRA Train's own widgets, without what does not count just now, and with a rate that says what it means. Values stay
// what they are.

import { hide, isInAppMode, widgetOf } from "../common/nodes.js";
import { valueOf } from "../common/wires.js";
import { say } from "../common/words.js";

const AMOUNTS = ["density", "count", "threshold"];

// Of the three, only the one that select_by has chosen; all of them where the page cannot know which that is.
export function showAmount(node) {
  const chosen = valueOf(node, "select_by");
  for (const name of AMOUNTS) {
    const widget = widgetOf(node, name);
    if (!widget) continue;
    const isLinked = node.inputs?.some((input) => input.widget?.name === name && input.link != null);
    hide(widget, AMOUNTS.includes(chosen) && name !== chosen && !isLinked && !isInAppMode(node, name));
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
