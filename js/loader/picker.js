// The window in which a delta is chosen: all that the server has, newest first, what nobody has saved apart.

import { element } from "../common/dom.js";
import { say } from "../common/words.js";
import { deltas, fileOf, refreshDeltas, SAVED, STOPPED, titleOf, UNSAVED } from "./deltas.js";
import { isForAnother } from "./family.js";
import { familyBadge, openDialog, readableDate, readableSize, thumbnail } from "./parts.js";

const MOST = 300;  // tiles at once

const sections = () => [
  [SAVED, null, null],
  [UNSAVED, say("Finished, not saved yet"), say("Trainings that came to their end: SaRA Save gives them a name.")],
  [STOPPED, say("Stopped trainings"), say("As far as they had come when they were stopped.")],
];

// Opens the window; `chosen` is called with a name.
export function pickDelta(model, chosen) {
  const search = element("input", {
    type: "search", class: "sara-search", placeholder: say("Search by title, name, trigger or family"),
    "aria-label": say("Search"), autofocus: true,
  });
  const list = element("div", { class: "sara-tiles" });
  const dialog = openDialog(say("Choose a delta"), "sara-picker", search, list);
  const take = (name) => { dialog.close(); chosen(name); };
  const show = () => list.replaceChildren(...tiles(search.value, model, take));
  search.addEventListener("input", show);
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter") list.querySelector("button.sara-tile")?.click();
  });
  show();
  refreshDeltas().then(() => dialog.isConnected && show());
  search.focus();
}

function tiles(searched, model, take) {
  if (deltas.problem()) return [element("p", { class: "sara-empty", role: "alert" }, deltas.problem())];
  if (!deltas.isKnown()) return [element("p", { class: "sara-empty" }, say("Looking …"))];
  if (!deltas.all().length) {
    return [element("p", { class: "sara-empty" },
      say("You have no delta yet: train one with SaRA Train, or put one into models/sara."))];
  }
  const words = searched.toLowerCase().split(/\s+/).filter(Boolean);
  const found = deltas.all().filter((row) => {
    const text = [row.name, row.title, row.trigger, row.family, row.author].join("\n").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  if (!found.length) return [element("p", { class: "sara-empty" }, say("No delta has these words."))];
  // Those for models of another family come after the others, each still newest first.
  found.sort((a, b) => isForAnother(a, model) - isForAnother(b, model));
  const shown = found.slice(0, MOST);
  const parts = sections().flatMap(([kind, title, remark]) => {
    const rows = shown.filter((row) => row.kind === kind);
    if (!rows.length) return [];
    const head = title && element("div", { class: "sara-section" }, element("h3", {}, title), element("span", {}, remark));
    return [head, element("div", { class: "sara-grid" }, ...rows.map((row) => tile(row, model, take)))].filter(Boolean);
  });
  if (found.length > MOST) {
    parts.push(element("p", { class: "sara-empty" }, say("{count} more: search for them.", { count: found.length - MOST })));
  }
  return parts;
}

function tile(row, model, take) {
  const title = titleOf(row, row.name);
  const isOther = isForAnother(row, model);
  const remark = row.error ?? (row.trigger || `${readableDate(row.modified)} · ${readableSize(row.size)}`);
  return element("button", {
    type: "button", class: `sara-tile${isOther ? " sara-other" : ""}${row.error ? " sara-odd" : ""}`,
    title: [row.name, row.error, row.trigger, readableDate(row.modified), readableSize(row.size)].filter(Boolean).join("\n"),
    "aria-label": [title, row.family, row.error].filter(Boolean).join(", "),
    onclick: () => take(row.name),
  },
  thumbnail(row, title),
  element("span", { class: "sara-text" },
    element("span", { class: "sara-line" }, element("strong", {}, title), familyBadge(row, model)),
    title === fileOf(row.name) ? null : element("span", { class: "sara-small" }, row.name),
    element("span", { class: "sara-small" }, remark)));
}
