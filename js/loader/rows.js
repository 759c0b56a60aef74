// The deltas of a SaRA Loader: the first one in its plain widgets, the others as lines of its input `more`, in the form
// that nodes/delta_rows.py reads: NAME = STRENGTH, STRENGTH_CLIP, off.

import { noteChange, widgetOf } from "../common/nodes.js";

export const NO_DELTA = "(no delta yet)";
const ENDING = ".safetensors";
// Where a first delta that is off has its strengths: off is 0 to whoever knows nothing of cards.
const BEFORE = "sara_strengths_before_off";

// [{ name, strength, clip, on }]; clip is undefined where none is said. A line that nobody understands is
// { name: the line, broken: true }.
export function readRows(node) {
  const before = node.properties[BEFORE];
  const strength = widgetOf(node, "strength").value;
  const isOff = before !== undefined && strength === 0;
  const first = { name: widgetOf(node, "sara_name").value, strength: isOff ? before[0] : strength, on: !isOff };
  const lines = String(widgetOf(node, "more")?.value ?? "").split("\n").map((line) => line.trim()).filter(Boolean);
  return [first, ...lines.map(readLine)];
}

function readLine(line) {
  const on = !/[,=]\s*off$/.test(line);
  const text = on ? line : line.replace(/\s*,?\s*off$/, "").replace(/\s*=$/, "");
  if (text.endsWith(ENDING)) return { name: text, strength: 1, on };
  const at = text.lastIndexOf("=");
  const numbers = text.slice(at + 1).split(",").map((part) => (part.trim() === "" ? NaN : Number(part)));
  if (at < 1 || numbers.length > 2 || !numbers.every(Number.isFinite)) return { name: line, broken: true, on: true };
  return { name: text.slice(0, at).trim(), strength: numbers[0], clip: numbers[1], on };
}

function writeLine({ name, strength, clip, on, broken }) {
  if (broken) return name;
  return `${name} = ${strength}${clip === undefined ? "" : `, ${clip}`}${on ? "" : ", off"}`;
}

export function writeRows(node, [first, ...others]) {
  const clip = widgetOf(node, "strength_clip");
  const before = node.properties[BEFORE];
  if (first.on && before !== undefined) {
    delete node.properties[BEFORE];
    if (clip && clip.value === 0) clip.value = before[1];
  } else if (!first.on) {
    node.properties[BEFORE] = [first.strength, before?.[1] ?? clip?.value ?? 1];
    if (clip) clip.value = 0;
  }
  set(node, "sara_name", first.name);
  set(node, "strength", first.on ? first.strength : 0);
  set(node, "more", others.map(writeLine).join("\n"));
  node.setDirtyCanvas?.(true, true);
  noteChange();
}

function set(node, name, value) {
  const widget = widgetOf(node, name);
  if (widget && widget.value !== value) widget.value = value;
}

// Whether another node says which delta comes first.
export function isNameLinked(node) {
  return node.inputs?.some((input) => input.widget?.name === "sara_name" && input.link != null) ?? false;
}
