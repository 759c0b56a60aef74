// The losses of a training as a drawing: each one thin, their mean over it, those of pictures held out, and where the
// support was adjusted or a snapshot taken. SVG, because it is sharp at every zoom and takes the theme's colours itself.

import { element } from "../common/dom.js";
import { say } from "../common/words.js";
import { decimated, logTicks, short, smoothed, ticks, valueRange } from "./numbers.js";

const LEFT = 44, RIGHT = 8, TOP = 6, BOTTOM = 18;  // pixels around the drawing, for the axes' words
const MARKS = { adjustment: "Adjustment at step {step}", snapshot: "Snapshot of step {step}" };

export class Curve {
  constructor() {
    this.drawing = svg("svg", { class: "sara-train-curve", tabindex: "0", role: "img" });
    this.legend = element("div", { class: "sara-train-legend" });
    this.logarithmic = element("button", {
      type: "button", class: "sara-train-log", "aria-pressed": "false", onclick: () => this.toggleScale(),
      title: say("Loss on a logarithmic scale"), "aria-label": say("Loss on a logarithmic scale"),
    }, say("log"));
    this.element = element("div", { class: "sara-train-chart" },
      element("div", { class: "sara-train-legends" }, this.legend, this.logarithmic), this.drawing);
    this.isLogarithmic = false;
    this.at = null;  // the step under the pointer
    this.drawing.addEventListener("pointermove", (event) => this.point(this.stepUnder(event)));
    this.drawing.addEventListener("pointerleave", () => this.point(null));
    this.drawing.addEventListener("blur", () => this.point(null));
    this.drawing.addEventListener("keydown", (event) => this.walk(event));
    new ResizeObserver(() => this.draw()).observe(this.drawing);
  }

  // run: a state as runs.js has it
  show(run) {
    this.run = run;
    this.mean = smoothed(run.losses);
    this.draw();
  }

  toggleScale() {
    this.isLogarithmic = !this.isLogarithmic;
    this.logarithmic.setAttribute("aria-pressed", String(this.isLogarithmic));
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.drawing;
    if (!this.run || !width || !height) return;
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const { losses, held_out: heldOut = [] } = this.run;
    this.drawing.setAttribute("aria-label", this.inWords());
    if (!losses.length) {
      this.drawing.replaceChildren();
      this.legend.replaceChildren();
      return;
    }
    this.frame(width, height);
    this.drawing.replaceChildren(
      ...this.axes(width, height), ...this.marks(height),
      this.line(losses, "raw"), this.line(this.mean, "mean"),
      ...(heldOut.length ? [this.line(heldOut, "held-out")] : []), this.pointer = svg("g", {}),
    );
    this.drawPointer();
  }

  // Where steps and losses lie in the drawing.
  frame(width, height) {
    const { losses, held_out: heldOut = [] } = this.run;
    let [low, high] = valueRange(losses, [...this.mean, ...heldOut]);
    this.usesLog = this.isLogarithmic && low > 0;
    const scale = this.usesLog ? Math.log : (value) => value;
    const first = Math.min(losses[0][0], 1), last = Math.max(this.run.steps ?? 0, losses.at(-1)[0], first + 1);
    this.steps = [first, last];
    this.range = [low, high];
    this.x = (step) => LEFT + ((step - first) / (last - first)) * (width - LEFT - RIGHT);
    const depth = height - TOP - BOTTOM;
    this.y = (value) => {
      const part = this.usesLog && value <= 0 ? 0 : (scale(value) - scale(low)) / (scale(high) - scale(low));
      return TOP + (1 - Math.min(1.02, Math.max(-0.02, part))) * depth;
    };
    this.bottom = height - BOTTOM;
    this.width = width;
  }

  axes(width, height) {
    const [first, last] = this.steps, [low, high] = this.range;
    const made = [];
    let free = Infinity;  // above the last label
    for (const value of (this.usesLog ? logTicks(low, high) : ticks(low, high, Math.max(2, height / 28)))) {
      const y = this.y(value);
      if (free - y < 12) continue;
      free = y;
      made.push(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }));
      made.push(text(short(value), { x: LEFT - 5, y: y + 3.5, "text-anchor": "end" }));
    }
    const steps = ticks(first, last, Math.max(2, width / 80)).filter(Number.isInteger);
    for (const step of steps) {
      const x = this.x(step);
      if (x > width - 34 && step !== last) continue;
      const anchor = x > width - 20 ? "end" : "middle";
      made.push(text(String(step), { x: Math.min(x, width - 2), y: height - 4, "text-anchor": anchor }));
    }
    made.push(text(say("step"), { x: LEFT - 5, y: height - 4, "text-anchor": "end" }));
    return made;
  }

  marks(height) {
    return (this.run.marks ?? []).map(({ step, kind }) => {
      const x = this.x(step), y = this.bottom;
      const shape = kind === "adjustment"
        ? svg("line", { class: "adjustment", x1: x, x2: x, y1: TOP, y2: y })
        : svg("path", { class: "snapshot", d: `M${x - 4},${y + 1}L${x + 4},${y + 1}L${x},${y - 6}Z` });
      shape.append(svg("title", {}, say(MARKS[kind] ?? "Step {step}", { step })));
      return shape;
    });
  }

  line(points, name) {
    const places = points.map(([step, value]) => [this.x(step), this.y(value)]);
    const path = decimated(places, this.width).map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join("L");
    // One point alone is a dot: a line of no length with round ends.
    return svg("path", { class: name, d: `M${path}${points.length === 1 ? "h0" : ""}` });
  }

  stepUnder(event) {
    const { left, width } = this.drawing.getBoundingClientRect();
    if (!this.x || !width) return null;
    const x = ((event.clientX - left) / width) * this.width;  // the host may show us larger or smaller
    const [first, last] = this.steps;
    return first + ((x - LEFT) / (this.width - LEFT - RIGHT)) * (last - first);
  }

  walk(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !this.run?.losses.length) return;
    event.preventDefault();
    event.stopPropagation();  // the host moves nodes with these keys
    const from = this.at === null ? this.run.losses.length - (by < 0 ? 0 : 1) : nearest(this.run.losses, this.at);
    const to = Math.min(this.run.losses.length - 1, Math.max(0, from + by));
    this.point(this.run.losses[to][0]);
  }

  point(step) {
    this.at = step;
    cancelAnimationFrame(this.frameAsked);
    this.frameAsked = requestAnimationFrame(() => this.drawPointer());
  }

  // The line under the pointer, and beside the names of the lines what they are there: at the end, if there is none.
  drawPointer() {
    if (!this.run?.losses.length || !this.pointer) return;
    const { losses, held_out: heldOut = [] } = this.run;
    const index = this.at === null ? losses.length - 1 : nearest(losses, this.at), [step] = losses[index];
    const held = heldOut[nearest(heldOut, step)];
    const isPointing = this.at !== null;
    this.pointer.replaceChildren(...(isPointing ? [
      svg("line", { class: "pointer", x1: this.x(step), x2: this.x(step), y1: TOP, y2: this.bottom }),
      svg("circle", { class: "point", cx: this.x(step), cy: this.y(this.mean[index][1]), r: 3 }),
    ] : []));
    this.legend.replaceChildren(...[
      isPointing && named("at", say("step {step}", { step })),
      named("mean", say("mean {loss}", { loss: short(this.mean[index][1]) })),
      named("raw", say("loss {loss}", { loss: short(losses[index][1]) })),
      held && named("held-out", say("held out {loss}", { loss: short(held[1]) })),
    ].filter(Boolean));
    this.drawing.setAttribute("aria-label", isPointing ? this.legend.textContent : this.inWords());
  }

  inWords() {
    if (!this.run?.losses.length) return say("Curve of the loss: no step is done yet");
    return say("Curve of the loss: {loss} after step {step}. The arrow keys go through the steps.", {
      loss: short(this.mean.at(-1)[1]), step: this.run.losses.at(-1)[0],
    });
  }
}

function named(kind, words) {
  return element("span", { class: `sara-train-key ${kind}` }, words);
}

// The index of the point whose step is closest; -1 without any.
function nearest(points, step) {
  let [low, high] = [0, points.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < step) low = middle + 1;
    else high = middle;
  }
  const isCloserBefore = low > 0 && step - points[low - 1][0] < points[low][0] - step;
  return points.length ? low - Number(isCloserBefore) : -1;
}

function svg(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function text(words, attributes) {
  return svg("text", attributes, words);
}
