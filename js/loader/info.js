// The window about one delta: what it is, how it was made, where its changes are, and what people say of it.

import { element } from "../common/dom.js";
import { ask } from "../common/server.js";
import { say, told } from "../common/words.js";
import { refreshDeltas, titleOf } from "./deltas.js";
import { copyButton, familyBadge, openDialog, readableDate, readableSize, thumbnail } from "./parts.js";

// Field → label and the most characters that the server takes.
const fields = () => ({
  title: [say("Title"), 200],
  trigger: [say("Trigger words"), 1000],
  author: [say("Author"), 200],
  licence: [say("Licence"), 200],
  notes: [say("Notes"), 10000],
});

export function openInfo(name) {
  const content = element("div", { class: "sara-about" }, say("Looking …"));
  const dialog = openDialog(say("About this delta"), "sara-info", content);
  const failed = (error) => content.replaceChildren(element("p", { class: "sara-empty", role: "alert" }, error.message));
  ask(`delta/info?${new URLSearchParams({ name })}`).then((info) => content.replaceChildren(...parts(info)), failed);
  return dialog;
}

function parts(info) {
  const facts = [
    readableSize(info.size), readableDate(info.modified),
    info.elements ? say("{count} changes", { count: info.elements.toLocaleString() }) : null,
  ].filter(Boolean).join(" · ");
  const head = element("div", { class: "sara-head" },
    thumbnail(info, titleOf(info, info.name)),
    element("div", { class: "sara-text" },
      element("span", { class: "sara-line" }, element("strong", {}, titleOf(info, info.name)), familyBadge(info)),
      element("span", { class: "sara-small" }, info.name),
      element("span", { class: "sara-small" }, facts)));
  if (info.error) return [head, element("p", { class: "sara-empty", role: "alert" }, told(info.error))];
  return [
    element("div", { class: "sara-column" }, head, form(info)),
    element("div", { class: "sara-column" }, blocks(info.blocks), settings(info.settings)),
  ];
}

function form(info) {
  let known = info;
  const inputs = Object.entries(fields()).map(([field, [label, most]]) => {
    const isLong = field === "notes" || field === "trigger";
    const input = element(isLong ? "textarea" : "input", { name: field, maxlength: String(most), rows: field === "notes" ? "4" : "2" });
    input.value = info[field];
    const copy = field === "trigger" && info.trigger ? copyButton(info.trigger) : null;
    return [field, input, element("label", {}, element("span", {}, label, copy), input)];
  });
  const save = element("button", { type: "submit", class: "sara-button sara-main", disabled: true }, say("Save in the file"));
  const said = element("span", { class: "sara-small", role: "status" });
  const changes = () => Object.fromEntries(
    inputs.filter(([field, input]) => input.value !== known[field]).map(([field, input]) => [field, input.value]));
  const made = element("form", { class: "sara-form" }, ...inputs.map(([, , label]) => label),
    element("div", { class: "sara-line" }, save, said));
  made.addEventListener("input", () => { save.disabled = !Object.keys(changes()).length; said.textContent = ""; });
  made.addEventListener("submit", async (event) => {
    event.preventDefault();
    save.disabled = true;
    try {
      known = await ask("delta/about", { name: info.name, version: known.version, ...changes() });
      for (const [field, input] of inputs) input.value = known[field];
      said.textContent = say("Saved.");
      made.closest("dialog")?.focus();  // what is disabled loses it, and Escape with it
      refreshDeltas();
    } catch (error) {
      said.textContent = error.message;
      save.disabled = false;
    }
  });
  return made;
}

// Of each block the share of its elements that is changed, as a bar beside the largest.
function blocks(found) {
  if (!found.length) return element("div", {});
  const largest = Math.max(...found.map((block) => block.density));
  return element("section", {}, element("h3", {}, say("Where its changes are")),
    element("div", { class: "sara-bars", role: "list" }, ...found.map((block) => {
      const percent = `${(100 * block.density).toPrecision(2)} %`;
      const title = say("{block}: {percent} of its elements, {count} changes",
        { block: block.name, percent, count: block.count.toLocaleString() });
      const bar = element("span", { class: "sara-bar", style: { width: `${largest ? 100 * block.density / largest : 0}%` } });
      return element("div", { role: "listitem", title },
        element("span", { class: "sara-block" }, block.name), element("span", { class: "sara-track" }, bar),
        element("span", { class: "sara-percent" }, percent));
    })));
}

function settings(pairs) {
  if (!pairs.length) return element("div", {});
  return element("section", {}, element("h3", {}, say("How it was made")),
    element("dl", {}, ...pairs.flatMap(([label, text]) => [element("dt", {}, label), element("dd", {}, text)])));
}
