// The deltas that the server has: asked once for all loaders of the page, and again when there may be others.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { ask, onEvent } from "../common/server.js";
import { told } from "../common/words.js";

export const SAVED = "saved", UNSAVED = "unsaved", STOPPED = "stopped";
const KINDS = [SAVED, UNSAVED, STOPPED];
const SETTLE = 400;  // ms, for several events at once

let rows = new Map();  // name → row, newest first
let problem = null, asking = null, waiting = null, isKnown = false;
const listeners = new Set();

export const deltas = {
  all: () => [...rows.values()],
  get: (name) => rows.get(name),
  problem: () => problem,
  isKnown: () => isKnown,
  // The names as the node's menu has them: what nobody has saved comes last.
  names: () => [...rows.values()]
    .sort((a, b) => KINDS.indexOf(a.kind) - KINDS.indexOf(b.kind) || (a.name < b.name ? -1 : 1))
    .map((row) => row.name),
  // What to take where nothing was chosen: the newest that somebody has saved, else the newest.
  newest: () => [...rows.values()].sort((a, b) => KINDS.indexOf(a.kind) - KINDS.indexOf(b.kind))[0]?.name,
};

// Calls `changed` after each answer until what is returned is called.
export function onDeltas(changed) {
  listeners.add(changed);
  return () => listeners.delete(changed);
}

export function refreshDeltas() {
  asking ??= ask("deltas").then(
    (answer) => { rows = new Map(answer.deltas.map((row) => [row.name, inWords(row)])); problem = null; isKnown = true; },
    (error) => { problem = error.message; },
  ).finally(() => {
    asking = null;
    for (const changed of listeners) changed();
  });
  return asking;
}

function inWords(row) {
  return { ...row, error: row.error && told(row.error) };
}

// After what may have made files; several events at once are one question.
export function refreshSoon() {
  if (!listeners.size || waiting !== null) return;
  waiting = setTimeout(() => { waiting = null; refreshDeltas(); }, SETTLE);
}

for (const event of ["execution_success", "execution_error", "execution_interrupted"]) onEvent(event, refreshSoon);
onEvent("executed", (said) => {
  const id = String(said?.node ?? "").split(":").pop();
  if (app.graph?.getNodeById?.(Number(id))?.comfyClass?.startsWith("SaRA")) refreshSoon();
});

export function previewUrl(row) {
  return api.apiURL(`/sara/delta/preview?${new URLSearchParams({ name: row.name, v: row.preview })}`);
}

// What people call a delta: its title, or its file.
export function titleOf(row, name) {
  return row?.title || fileOf(name);
}

export function fileOf(name) {
  return name.split(/[\\/]/).pop().replace(/\.safetensors$/, "").replace(/_$/, "");
}
