// What feeds a node, before anything runs: back over wires, reroutes and the borders of subgraphs.

import { origin, valueOf } from "../common/wires.js";

const MOST_NODES = 200;
const OFF = [2, 4];  // LiteGraph's modes of nodes that are muted, or bypassed

// The nodes behind an input, the nearest first; `follow(input)` says over which inputs of theirs to go on.
function behind(node, name, follow = () => true) {
  const first = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  const found = new Set();
  const due = first < 0 ? [] : [origin(node, first)];
  while (due.length && found.size < MOST_NODES) {
    const next = due.shift();
    if (!next || found.has(next)) continue;
    found.add(next);
    next.inputs?.forEach((input, index) => follow(input) && due.push(origin(next, index)));
  }
  return [...found].filter((one) => !OFF.includes(one.mode));
}

// What the page can tell of a training: { model, dataset, options, sizes }, each undefined where it cannot be traced;
// sizes: [node, width, height] widgets that a picture's size is set with.
export function traced(node) {
  const models = behind(node, "model", (input) => ["MODEL", "*"].includes(input.type));
  const loader = models.find((one) => valueOf(one, "ckpt_name") || valueOf(one, "unet_name"));
  const name = loader && (valueOf(loader, "ckpt_name") ?? `diffusion_models/${valueOf(loader, "unet_name")}`);
  const pictures = behind(node, "latents");
  const own = pictures.find((one) => one.comfyClass === "SaRADataset");
  const folder = pictures.find((one) => one.comfyClass === "LoadImageTextDataSetFromFolder" && valueOf(one, "folder"));
  const scale = pictures.find((one) => one.comfyClass === "ImageScale");
  return {
    model: name,
    dataset: own ? ofOwn(own) : ofOthers(folder, scale),
    options: behind(node, "options").find((one) => one.comfyClass === "SaRATrainOptions"),
    sizes: own ? [[own, "resolution"]] : scale ? [[scale, "width"], [scale, "height"]] : [],
  };
}

function ofOwn(node) {
  const names = ["folders", "trigger", "caption", "resolution", "buckets"];
  return Object.fromEntries(names.map((name) => [name, valueOf(node, name)]));
}

function ofOthers(folder, scale) {
  const [width, height] = scale ? [valueOf(scale, "width"), valueOf(scale, "height")] : [];
  const resolution = width && height ? Math.round(Math.sqrt(width * height)) : undefined;
  return { folders: folder && valueOf(folder, "folder"), resolution, buckets: false };
}
