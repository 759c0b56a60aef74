// SaRA Loader's cards, in place of its plain widgets, which keep the values: the prompt is the same with and without
// them.

import { app } from "../../../scripts/app.js";
import { element, useStyle } from "../common/dom.js";
import { addPanel, after, hide, isInAppMode, onNode, widgetOf } from "../common/nodes.js";
import { say } from "../common/words.js";
import { card } from "./card.js";
import { deltas, onDeltas, refreshDeltas } from "./deltas.js";
import { familyOf } from "./family.js";
import { openInfo } from "./info.js";
import { pickDelta } from "./picker.js";
import { isNameLinked, NO_DELTA, readRows, writeRows } from "./rows.js";

const SHOWN_AS_CARDS = ["sara_name", "strength", "more"];
const CARD = 76, BUTTON = 40, WIDTH = 340;  // pixels of the graph

onNode("Loader", "SaRALoader", (node) => {
  // A loader of a server without our newer inputs stays as it is.
  if (!widgetOf(node, "more") || !node.addDOMWidget) return;
  useStyle("loader.css", import.meta.url);
  new Cards(node);
});

class Cards {
  constructor(node) {
    this.node = node;
    this.model = null;
    this.isNew = true;  // the page may have given it a name from a list that is old
    this.element = element("div", { class: "sara-cards", "aria-label": say("Deltas") });
    this.hidePlain();
    this.widget = addPanel(node, "cards", this.element, CARD + BUTTON);
    this.widget.label = say("Deltas");
    this.widget.options.getMinHeight = () => this.height;
    this.height = CARD + BUTTON;
    after(node, "onConfigure", () => {
      this.isNew = false;
      this.connectionsChanged();
      // The graph has what App mode shows of it once all its nodes are there.
      setTimeout(() => this.hidePlain());
    });
    after(node, "onConnectionsChange", () => this.connectionsChanged());
    after(node, "onRemoved", onDeltas(() => this.listChanged()));
    after(node, "refreshComboInNode", () => refreshDeltas());
    for (const name of SHOWN_AS_CARDS) {
      const widget = widgetOf(node, name);
      after(widget, "callback", () => this.show());
    }
    this.element.addEventListener("pointerenter", () => this.look());
    refreshDeltas();
    this.connectionsChanged();
    // As small as it can be now, without the plain widgets.
    node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]]);
  }

  // But for those that App mode shows, which knows no cards.
  hidePlain() {
    for (const name of SHOWN_AS_CARDS) hidePlain(widgetOf(this.node, name), !isInAppMode(this.node, name));
  }

  connectionsChanged() {
    const isClipThere = this.node.inputs?.some((input) => input.name === "clip" && input.link != null);
    hidePlain(widgetOf(this.node, "strength_clip"), !isClipThere);
    this.show();
    this.look();
  }

  // The model that comes in may have become another one; nothing tells of that.
  async look() {
    const model = await familyOf(this.node);
    if (model.layout === this.model?.layout) return;
    this.model = model;
    this.show();
  }

  listChanged() {
    const widget = widgetOf(this.node, "sara_name");
    if (deltas.isKnown()) {
      const names = deltas.names();
      if (Array.isArray(widget.options?.values)) widget.options.values = names.length ? names : [NO_DELTA];
      const isGone = this.isNew && !names.includes(widget.value);
      if (isGone || widget.value === NO_DELTA) widget.value = deltas.newest() ?? NO_DELTA;
      this.isNew = false;
    }
    this.show();
    this.look();
  }

  show(keepsSize = true) {
    const rows = readRows(this.node);
    const focused = this.element.contains(document.activeElement) ? placeOf(document.activeElement) : null;
    const cards = rows.map((row, place) => card(row, this.model, place === 0 && isNameLinked(this.node), {
      change: (part) => this.change(place, part),
      pick: () => pickDelta(this.model, (name) => this.write(rows.map((other, at) => (at === place ? chosen(other, name) : other)))),
      about: () => openInfo(row.name),
      remove: rows.length > 1 && !(place === 0 && isNameLinked(this.node))
        ? () => this.write(rows.filter((_, at) => at !== place)) : undefined,
    }));
    const add = element("button", {
      type: "button", class: "sara-button", onclick: () => pickDelta(this.model, (name) => this.add(name)),
    }, say("Add a delta"));
    this.element.replaceChildren(...cards, add);
    if (focused !== null) all(this.element)[focused]?.focus();
    this.fit(rows.length * CARD + BUTTON, keepsSize);
  }

  add(name) {
    const rows = readRows(this.node);
    const isFirst = rows.length === 1 && rows[0].name === NO_DELTA;
    this.write(isFirst ? [chosen(rows[0], name)] : [...rows, { name, strength: 1, on: true }]);
  }

  change(place, part) {
    const rows = readRows(this.node).map((row, at) => (at === place ? { ...row, ...part } : row));
    // The card shows its strength already, and one made anew would take the focus from whoever goes on by Tab.
    if ("strength" in part) writeRows(this.node, rows);
    else this.write(rows);
  }

  write(rows) {
    const [first, ...others] = rows;
    // A line that is not understood cannot come first.
    writeRows(this.node, first.broken ? [{ name: NO_DELTA, strength: 1, on: true }, ...rows] : [first, ...others]);
    this.show(false);
  }

  // keepsSize: where it was not cards that came or went, and the node has whatever size its user gave it
  fit(height, keepsSize) {
    const [width, now] = this.node.size;
    const room = Math.max(0, now - this.node.computeSize()[1]);
    this.height = height;
    const least = this.node.computeSize()[1];
    const size = [Math.max(width, WIDTH), keepsSize ? Math.max(now, least) : least + room];
    if (size[0] !== width || size[1] !== now) this.node.setSize(size);
    app.canvas?.setDirty?.(true, true);
  }
}

function chosen(row, name) {
  return { strength: 1, ...row, name, broken: undefined };
}

// Not among those that the page would offer to show either.
function hidePlain(widget, isHidden) {
  hide(widget, isHidden);
  if (widget) widget.advanced = widget.options.advanced = false;
}

const all = (panel) => [...panel.querySelectorAll("button, input")];
const placeOf = (focused) => all(focused.closest(".sara-cards")).indexOf(focused);
