// Which family the model is of that a node gets, before anything runs: by the file that feeds it.

import { ask } from "../common/server.js";

const MOST_NODES = 50;
const known = new Map();  // file → promise of { family, layout }
const UNKNOWN = { family: null, layout: null };

// The file in the menus that the node's input `model` comes from, over nodes that hand a MODEL on; undefined where that
// cannot be told.
export function modelFile(node) {
  let current = node;
  for (let count = 0; current && count < MOST_NODES; count += 1) {
    const slot = current.inputs?.findIndex((input) => input.type === "MODEL") ?? -1;
    if (current !== node || slot < 0) {
      const named = (name) => current.widgets?.find((widget) => widget.name === name)?.value;
      if (named("ckpt_name")) return named("ckpt_name");
      if (named("unet_name")) return `diffusion_models/${named("unet_name")}`;
    }
    // A node that is being made is in no graph yet, and newer frontends throw when it is asked for its inputs' nodes.
    current = slot < 0 || !current.graph ? null : current.getInputNode?.(slot);
  }
  return undefined;
}

export function familyOf(node) {
  const file = modelFile(node);
  if (file === undefined) return Promise.resolve(UNKNOWN);
  if (!known.has(file)) {
    const forgotten = () => known.delete(file) && UNKNOWN;  // the file may come, or the server come back
    known.set(file, ask(`family?${new URLSearchParams({ model: file })}`).catch(forgotten));
  }
  return known.get(file);
}

// Whether a delta is certainly for models of another family.
export function isForAnother(row, model) {
  return Boolean(row?.layout && model?.layout && row.layout !== model.layout);
}
