// Questions to our part of the server (nodes/host/web), and what it tells the page.

import { api } from "../../../scripts/api.js";

export class ServerError extends Error {}

// The JSON answer to GET /sara/<path>, or to a POST of `sent`; a ServerError's message is a sentence for people.
export async function ask(path, sent) {
  const options = sent === undefined
    ? { cache: "no-store" }
    : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(sent) };
  const answer = await api.fetchApi(`/sara/${path}`, options);
  const content = await answer.json().catch(() => null);
  if (!answer.ok) throw new ServerError(content?.error ?? `ComfyUI answered ${answer.status} ${answer.statusText}`);
  return content;
}

// Calls `listener` with the content of every event of this name that the server sends; returns what ends that.
export function onEvent(name, listener) {
  const heard = (event) => listener(event.detail);
  api.addEventListener(name, heard);
  return () => api.removeEventListener(name, heard);
}

// Where a file that the host serves can be seen: {filename, subfolder, type}, as nodes give pictures in their "ui".
export function viewUrl({ filename, subfolder = "", type = "output" }, extra = {}) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type, ...extra })}`);
}
