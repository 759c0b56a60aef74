// On SaRA Train, before Run: settings to begin with, by what is to be learned and by the model, and what the training will
// take. Nothing of it is in a workflow file but the widgets' values.

import { element, useStyle } from "../common/dom.js";
import { addPanel, after, noteChange, onNode, widgetOf } from "../common/nodes.js";
import { ask, onEvent } from "../common/server.js";
import { deciding, valueOf } from "../common/wires.js";
import { say, told } from "../common/words.js";
import { checkLine } from "./check_line.js";
import { showAmount, showRate } from "./plain_widgets.js";
import { traced } from "./trace.js";

const GOALS = { style: "a style", subject: "one person, animal or thing", concept: "something new to the model" };
const SETTINGS = ["select_by", "density", "count", "threshold", "steps", "batch_size", "grad_accumulation",
  "gradient_checkpointing", "layers", "include", "exclude"];
const OPTIONS = ["snapshot_every", "snapshots_kept"];
const PAUSE = 400;  // milliseconds after the last change
const HEIGHT = 76, MOST_MORE = 136;  // pixels of the graph: all of it before it is laid out, and most of the list

useStyle("presets.css", import.meta.url);

onNode("TrainPresets", "SaRATrain", (node) => {
  if (node.addDOMWidget) new Check(node);
});

class Check {
  constructor(node) {
    this.node = node;
    this.goal = element("select", { "aria-label": say("What is to be learned") },
      ...Object.keys(GOALS).map((goal) => element("option", { value: goal }, say(GOALS[goal]))));
    this.apply = element("button", {
      type: "button", title: say("Sets size, density, steps and rate to values to begin with"), onclick: () => this.applied(),
    }, say("Apply preset"));
    this.line = element("p", { class: "sara-check-line", role: "status", "aria-live": "polite" });
    this.more = element("ul", { class: "sara-check-more", tabindex: "0", "aria-label": say("Before this training") });
    this.row = element("div", { class: "sara-check-row" }, element("label", {}, say("Learn")), this.goal, this.apply);
    const keep = (event) => event.stopPropagation();  // from the graph, which would move, and has commands on keys
    this.element = element("div", {
      class: "sara-check", role: "region", "aria-label": say("Before this training"), onpointerdown: keep, onkeydown: keep,
    }, this.row, this.line, this.more);
    this.height = HEIGHT;
    this.widget = addPanel(node, "sara_check", this.element, HEIGHT);
    this.widget.label = say("Before this training");
    this.widget.options.getMinHeight = this.widget.options.getMaxHeight = () => this.height;
    this.follow();
  }

  follow() {
    const { node } = this;
    const changed = () => { this.showWidgets(); this.soon(); };
    for (const name of SETTINGS.concat("learning_rate")) after(widgetOf(node, name), "callback", changed);
    for (const method of ["onConfigure", "onConnectionsChange"]) after(node, method, changed);
    const ends = [
      onEvent("graphChanged", () => this.soon()),
      onEvent("execution_success", () => this.soon(true)),  // by now it is known how long a step takes
    ];
    after(node, "onRemoved", () => {
      clearTimeout(this.timer);
      ends.forEach((end) => end());
    });
    this.element.addEventListener("pointerenter", () => this.soon(true));  // files may have changed
    new ResizeObserver(() => this.fit()).observe(this.line);  // its words break where the node is narrow
    changed();
  }

  showWidgets() {
    showAmount(this.node);
    showRate(this.node);
  }

  soon(again = false) {
    clearTimeout(this.timer);
    if (again) this.asked = undefined;
    this.timer = setTimeout(() => this.check(), PAUSE);
  }

  question() {
    const { model, dataset, options } = traced(this.node);
    const settings = Object.fromEntries(SETTINGS.map((name) => [name, valueOf(this.node, name)]));
    if (options) for (const name of OPTIONS) settings[name] = valueOf(options, name);
    return { model, dataset, settings };
  }

  async check() {
    if (!this.node.graph) return;
    const question = this.question(), text = JSON.stringify(question);
    if (text === this.asked) return;
    this.asked = text;
    const answer = await ask("check", question).catch((error) => ({ error: error.message }));
    if (this.asked === text) this.show(answer);
  }

  show(answer) {
    this.line.textContent = answer.error ?? checkLine(answer);
    const doubts = (answer.doubts ?? []).map((doubt) => element("li", { class: "sara-check-doubt" }, told(doubt)));
    this.more.replaceChildren(...doubts, ...(this.changes ?? []));
    this.fit();
  }

  async applied() {
    const { sizes } = traced(this.node);
    try {
      const { preset } = await ask("check", { ...this.question(), goal: this.goal.value });
      this.changes = this.filledIn(preset, sizes);
    } catch (error) {
      this.changes = [element("li", { class: "sara-check-set" }, error.message)];
    }
    this.soon(true);
  }

  // Sets the widgets, and says of each what it was, what it is, and why.
  filledIn({ resolution, ...preset }, sizes) {
    const set = [[this.node, "select_by", "density"]];
    for (const [name, { value }] of Object.entries(preset)) set.push([this.node, name, value]);
    for (const [node, name] of sizes) set.push([node, name, resolution.value]);
    const said = set.map(([node, name, value]) => {
      const widget = deciding(node, name), before = widget?.value;
      if (!widget || before === value) return undefined;
      widget.value = value;
      widget.callback?.(value);
      const why = (node === this.node ? preset[name] : resolution)?.why;
      const reason = why ? `: ${told(why)}` : "";
      return element("li", { class: "sara-check-set" }, element("b", {}, `${name} ${shown(before)} → ${shown(value)}`), reason);
    }).filter(Boolean);
    this.node.graph?.setDirtyCanvas?.(true, true);
    noteChange();
    return said.length ? said : [element("li", { class: "sara-check-set" }, say("Everything is so already."))];
  }

  // The node grows only as far as it lacks room: whoever has drawn it tall already keeps its size.
  fit() {
    const height = this.measured();
    if (this.height === height) return;
    this.height = height;
    const [, needed] = this.node.computeSize();
    if (this.node.size[1] < needed) this.node.setSize([this.node.size[0], needed]);
    this.node.setDirtyCanvas?.(true, true);
  }

  // The pixels that all parts take as they stand; of the list at most so many, and the rest can be scrolled to.
  measured() {
    if (!this.element.offsetHeight) return this.height;  // not laid out: in a collapsed node, or another graph's
    const { paddingTop, paddingBottom, rowGap } = getComputedStyle(this.element);
    const items = [...this.more.children], last = items.at(-1);
    const more = last ? last.offsetTop + last.offsetHeight - items[0].offsetTop : 0;
    const parts = [this.row.offsetHeight, this.line.offsetHeight, ...(more ? [Math.min(MOST_MORE, more)] : [])];
    const around = parseFloat(paddingTop) + parseFloat(paddingBottom) + parseFloat(rowGap) * (parts.length - 1);
    return Math.ceil(parts.reduce((sum, part) => sum + part, around)) + 2 * (this.widget.margin ?? 0);
  }
}

const shown = (value) => (value === "" ? "–" : String(value));
