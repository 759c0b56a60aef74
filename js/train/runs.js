// The trainings that this page knows of. The server tells of each as it goes on; whatever came before the page was
// loaded, or while the line was cut, is asked for.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { ask, onEvent, ServerError } from "../common/server.js";
import { say } from "../common/words.js";
import { executionId, nodeInPrompt } from "../common/nodes.js";

const MOST_RUNS = 50;
const OVER = ["finished", "stopped", "failed"];
const NO_ID = "00000000-0000-0000-0000-000000000000";  // of a graph that has not been given one yet

const runs = new Map();      // its name → its state, the newest run last
const queuedHere = new Set();  // prompts of this page
const listeners = new Set();
const asked = new Set();     // runs whose whole state is on its way

// Calls `listener(run)` whenever the state of a run is another one than before.
export function onRun(listener) {
  listeners.add(listener);
}

// The newest run of a node, undefined for none. Node 8 of another workflow, or of another tab's, is another node.
export function runOf(node) {
  const id = executionId(node), workflow = openWorkflow();
  const isOurs = (run) => (run.workflow && workflow ? run.workflow === workflow : queuedHere.has(run.prompt));
  const isOf = (run) => run.node === id || (ownId(run.node) === ownId(id) && !nodeInPrompt(run.node));
  return [...runs.values()].reverse().find((run) => isOf(run) && isOurs(run));
}

// A node that is made part of a subgraph keeps its own id, but the server has known it by another name: "8", not "12:8".
function ownId(id) {
  return id.split(":").at(-1);
}

// Takes what a node has kept of its run with the workflow's results, unless more is known of that run.
export function takeKept(state) {
  if (!runs.has(state.run)) put(state);
}

// Asks for the runs of the open workflow. The server learns by it that this page shows them.
export async function refresh() {
  const workflow = openWorkflow();
  const values = new URLSearchParams({ ...(workflow && { workflow }), ...(api.clientId && { client: api.clientId }) });
  await quietly(ask(`runs?${values}`), ({ runs: found }) => [...found].reverse().forEach(put));
}

export function follow() {
  onEvent("sara.run", heard);
  onEvent("execution_start", ({ prompt_id }) => queuedHere.add(prompt_id));  // the server tells only whoever queued it
  onEvent("reconnected", () => {
    refresh();
    askForUnfinished();
  });
}

// A server that was started anew knows none of the runs that went on when it ended, and no event will come of them.
function askForUnfinished() {
  for (const run of [...runs.values()].filter((run) => !isOver(run))) {
    ask(`runs/${run.run}`).then(put, (error) => error instanceof ServerError && put(lost(run)));
  }
}

function lost(run) {
  const words = say("ComfyUI ended during this training. If a snapshot of it was saved, choose it under resume to go on.");
  const end = { kind: "failed", sentences: [words], delta: null, snapshot: null, seconds: null };
  return { ...run, phase: "failed", message: null, end };
}

export function isOver({ end, phase }) {
  return Boolean(end) || OVER.includes(phase);
}

function openWorkflow() {
  const id = (app.rootGraph ?? app.graph)?.id;
  return id && id !== NO_ID ? id : undefined;
}

function put(state) {
  const count = state.points ?? state.losses.length;
  runs.set(state.run, { ...state, counts: { losses: count, held_out: state.held_out_points ?? state.held_out?.length ?? 0 } });
  for (const old of [...runs.keys()].slice(0, -MOST_RUNS)) runs.delete(old);
  tell(runs.get(state.run));
}

function heard(news) {
  const { new_losses, new_held_out, first_new, first_new_held_out, ...rest } = news;
  const known = runs.get(news.run);
  const run = Object.assign(known ?? { losses: [], held_out: [], counts: { losses: 0, held_out: 0 } }, rest);
  const isWhole = add(run, "losses", new_losses, first_new) && add(run, "held_out", new_held_out, first_new_held_out);
  runs.set(run.run, run);
  if (!isWhole) askForAll(run.run);
  tell(run);
}

// Adds points to a curve of which the page may know some already; false if some before them are missing.
function add(run, curve, points = [], first = run.counts[curve]) {
  if (first > run.counts[curve]) return false;
  const unknown = points.slice(run.counts[curve] - first);
  run[curve] = run[curve].concat(unknown);
  run.counts[curve] += unknown.length;
  return true;
}

async function askForAll(run) {
  if (asked.has(run)) return;
  asked.add(run);
  await quietly(ask(`runs/${run}`), put);
  asked.delete(run);
}

function tell(run) {
  for (const listener of listeners) listener(run);
}

// A page that cannot ask just now has lost its server, and the host says so; it asks again when that is back.
async function quietly(question, taken) {
  try {
    taken(await question);
  } catch (error) {
    console.warn("SaRA: the state of a training could not be read.", error);
  }
}
