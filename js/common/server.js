// Questions to our part of the server (nodes/host/web), and what it tells the page.

import { api } from "../../../scripts/api.js";
import { say, told } from "./words.js";

export class ServerError extends Error {}

// The JSON answer to GET /sara/<path>, or to a POST of `sent`; a ServerError's message is for people, in their language.
export async function ask(path, sent) {
  const options = sent === undefined
    ? { cache: "no-store" }
    : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(sent) };
  const answer = await api.fetchApi(`/sara/${path}`, options);
  const content = await answer.json().catch(() => null);
  if (answer.ok) return content;
  const { status, statusText } = answer, said = content?.sentence ?? content?.error;
  throw new ServerError(said ? told(said) : say("ComfyUI answered {status}.", { status: `${status} ${statusText}` }));
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
