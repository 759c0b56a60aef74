// What cards, picker and info show alike: thumbnail, family, trigger words, dialogs.

import { element } from "../common/dom.js";
import { say } from "../common/words.js";
import { previewUrl } from "./deltas.js";
import { isForAnother } from "./family.js";

export function thumbnail(row, title) {
  const frame = element("span", { class: "sara-thumb", "aria-hidden": "true" }, (title || "?").slice(0, 1).toUpperCase());
  if (row?.preview) {
    const picture = element("img", { src: previewUrl(row), alt: "", loading: "lazy", draggable: false });
    picture.addEventListener("error", () => picture.remove());
    frame.append(picture);
  }
  return frame;
}

// A badge, with a warning where the model is of another family.
export function familyBadge(row, model) {
  if (!row?.family) return null;
  const isOther = isForAnother(row, model);
  const title = isOther
    ? say("This delta is for {family}, the model is {other}.", { family: row.family, other: model.family })
    : say("This delta is for {family}.", { family: row.family });
  return element("span", { class: `sara-badge${isOther ? " sara-warns" : ""}`, title }, row.family);
}

export function copyButton(text) {
  const button = element("button", {
    type: "button", class: "sara-icon", title: say("Copy the trigger words"), "aria-label": say("Copy the trigger words"),
  }, icon("pi-copy"));
  button.addEventListener("click", async (event) => {
    event.stopPropagation();
    const isCopied = await copied(text);
    button.replaceChildren(icon(isCopied ? "pi-check" : "pi-times"));
    setTimeout(() => button.replaceChildren(icon("pi-copy")), 1200);
  });
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Pages that come from another computer without https have no clipboard.
    const field = element("textarea", { style: { position: "fixed", opacity: "0" } });
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}

export function icon(name) {
  return element("i", { class: `pi ${name}`, "aria-hidden": "true" });
}

export function iconButton(name, label, onclick, extra = {}) {
  return element("button", { type: "button", class: "sara-icon", title: label, "aria-label": label, onclick, ...extra },
    icon(name));
}

// A window over the page, closed by Escape, its cross or a click beside it; keys pressed in it are none of the canvas's.
export function openDialog(title, kind, ...content) {
  const dialog = element("dialog", { class: `sara-dialog ${kind}`, "aria-label": title, tabindex: "-1" });
  const close = iconButton("pi-times", say("Close"), () => dialog.close());
  dialog.append(element("header", {}, element("h2", {}, title), close), ...content);
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Escape") dialog.close();  // the page may take the key for its own
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

export function readableSize(bytes) {
  const units = ["B", "KB", "MB", "GB"];
  let unit = 0;
  for (; bytes >= 1000 && unit < units.length - 1; unit += 1) bytes /= 1000;
  return `${bytes >= 100 || unit === 0 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
}

export function readableDate(seconds) {
  return new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
