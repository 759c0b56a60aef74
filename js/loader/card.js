// One delta of a SaRA Loader, as a card: on or off, what it is, how strong.

import { element } from "../common/dom.js";
import { say } from "../common/words.js";
import { deltas, titleOf } from "./deltas.js";
import { copyButton, familyBadge, iconButton, thumbnail } from "./parts.js";
import { NO_DELTA } from "./rows.js";

const REACH = 2;  // of the slider; the number beside it takes more
const STRONGEST = 100;

// row: as readRows gives it; actions: change(part), pick(), about(), remove (if it may be)
export function card(row, model, isLinked, actions) {
  const found = deltas.get(row.name);
  const isGone = !isLinked && !row.broken && deltas.isKnown() && !found && row.name !== NO_DELTA;
  const title = isLinked ? say("Chosen by another node") : row.name === NO_DELTA ? say("No delta yet") : titleOf(found, row.name);
  const remark = row.broken ? say("This line cannot be understood.")
    : isGone ? say("This file is not there any more.")
    : found?.error ?? found?.trigger;
  const toggle = element("input", {
    type: "checkbox", class: "sara-toggle", title: say("On or off"), "aria-label": say("{title} is on", { title }),
    disabled: Boolean(row.broken), onchange: () => actions.change({ on: toggle.checked }),
  });
  toggle.checked = row.on;
  const name = element("button", {
    type: "button", class: "sara-name", title: isLinked ? title : `${row.name}\n${say("Click to choose another one")}`,
    disabled: isLinked, onclick: actions.pick,
  }, thumbnail(found, title), element("span", { class: "sara-text" },
    element("span", { class: "sara-line" }, element("strong", {}, title), familyBadge(found, model)),
    remark ? element("span", { class: `sara-small${isGone || row.broken || found?.error ? " sara-warns" : ""}` }, remark) : null));
  return element("div", { class: `sara-card${row.on ? "" : " sara-off"}`, role: "group", "aria-label": title },
    element("div", { class: "sara-line" },
      toggle, name, found?.trigger ? copyButton(found.trigger) : null,
      found ? iconButton("pi-info-circle", say("About this delta"), actions.about) : null,
      actions.remove ? iconButton("pi-times", say("Take it out"), actions.remove) : null),
    row.broken ? null : strength(row, title, actions));
}

function strength(row, title, actions) {
  const label = say("Strength of {title}", { title });
  const slider = element("input", {
    type: "range", min: String(-REACH), max: String(REACH), step: "0.05", class: "sara-slider", "aria-label": label, title: label,
  });
  const number = element("input", {
    type: "number", min: String(-STRONGEST), max: String(STRONGEST), step: "0.05", class: "sara-number", "aria-label": label,
  });
  let shown;
  const show = (value) => {
    shown = value;
    slider.value = String(value);
    number.value = String(Math.round(value * 1000) / 1000);
    slider.style.setProperty("--at", `${50 + 50 * Math.max(-1, Math.min(1, value / REACH))}%`);
  };
  show(row.strength);
  slider.addEventListener("input", () => show(Number(slider.value)));
  slider.addEventListener("change", () => actions.change({ strength: Number(slider.value) }));
  slider.addEventListener("dblclick", () => { show(1); actions.change({ strength: 1 }); });
  number.addEventListener("change", () => {
    const value = Number(number.value);
    const isSound = number.value !== "" && Number.isFinite(value) && Math.abs(value) <= STRONGEST;
    show(isSound ? value : shown);
    if (isSound) actions.change({ strength: value });
  });
  number.addEventListener("keydown", (event) => event.stopPropagation());
  return element("div", { class: "sara-line sara-strength" }, slider, number);
}
