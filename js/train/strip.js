// The pictures drawn in between: a row for each caption, a column for each sampling, from before the first step on.

import { element } from "../common/dom.js";
import { viewUrl } from "../common/server.js";
import { say } from "../common/words.js";
import { showLarge } from "./large.js";

export class Strip {
  // onSnapshot(name, step): somebody wants to go on from the snapshot of that sampling
  constructor(onSnapshot) {
    this.onSnapshot = onSnapshot;
    this.element = element("div", {
      class: "sara-train-strip", tabindex: "0", role: "region", "aria-label": say("Pictures drawn while training"),
    });
    this.shown = "";
  }

  show(samples) {
    const described = JSON.stringify(samples ?? null);
    if (described === this.shown) return;  // pictures that are there already would flicker
    const hadColumns = this.columns ?? 0;
    this.shown = described;
    this.element.replaceChildren();
    this.columns = samples?.columns.length ?? 0;
    if (!samples) return;
    if (!this.columns) {
      this.element.append(element("p", { class: "sara-train-hint" }, say("The pictures drawn in between appear here.")));
      return;
    }
    this.element.append(element("table", {}, this.head(samples), ...samples.captions.map((_, row) => this.row(samples, row))));
    if (this.columns > hadColumns) this.element.scrollLeft = this.element.scrollWidth;
  }

  head({ columns }) {
    return element("tr", {}, element("th", { scope: "col", "aria-label": say("Caption") }), ...columns.map((column) =>
      element("th", { scope: "col" }, column.snapshot ? this.chooser(column) : element("span", {}, stepName(column.step)))));
  }

  chooser({ step, snapshot }) {
    const words = say("Use the snapshot of step {step}: chooses it under resume", { step });
    return element("button", {
      type: "button", title: words, "aria-label": words, onclick: () => this.onSnapshot(snapshot, step),
    }, stepName(step), " ↺");
  }

  row(samples, row) {
    const caption = samples.captions[row] || say("picture {number}", { number: row + 1 });
    return element("tr", {},
      element("th", { scope: "row", title: caption }, element("span", {}, caption)),
      ...samples.columns.map((column, index) => element("td", {}, column.files[row] ? this.picture(samples, row, index, caption) : null)));
  }

  picture(samples, row, index, caption) {
    const column = samples.columns[index];
    if (/\.wav$/i.test(column.files[row].filename)) {
      return element("audio", { controls: true, preload: "none", src: viewUrl(column.files[row]), "aria-label": caption });
    }
    const words = say("{caption}, {step}: show it large", { caption, step: stepName(column.step) });
    return element("button", {
      type: "button", title: words, "aria-label": words,
      onclick: () => showLarge(samples, row, index, this.onSnapshot),
    }, element("img", { src: viewUrl(column.files[row]), alt: "", loading: "lazy", draggable: "false" }));
  }
}

export function stepName(step) {
  return step === 0 ? say("before") : say("step {step}", { step });
}
