// What our part of the page says, in the page's language; English stands where it is used, and is the key.

import { app } from "../../../scripts/app.js";

const TRANSLATED = ["es", "fr", "ja", "ko", "zh"];  // each has a table in languages/

let sentences = new Map();  // of the page's language, English → translated
let values = new Map();     // the same for what can be chosen in an input

// "{steps} steps" with { steps: 5 } → "5 steps", or the same in the page's language.
export function say(english, inserted = {}) {
  const sentence = sentences.get(english) ?? english;
  return sentence.replace(/\{(\w+)\}/g, (whole, name) => (name in inserted ? told(inserted[name]) : whole));
}

// What the server says, as it says it: {key, values}, of which values may be the same again; texts stay as they are.
export function told(sentence) {
  return sentence?.key === undefined ? String(sentence) : say(sentence.key, sentence.values);
}

// How a choice of an input is shown; undefined where the page's language has no word of its own for it.
export function wordFor(value) {
  return values.get(value);
}

export function language() {
  return app.ui?.settings?.getSettingValue?.("Comfy.Locale") ?? "en";
}

async function readTable() {
  const table = TRANSLATED.includes(language()) ? await tableOf(language()) : {};
  sentences = new Map(Object.entries(table.sentences ?? {}));
  values = new Map(Object.entries(table.values ?? {}));
}

// English is better than no page, so that a table which cannot be had is an empty one.
async function tableOf(name) {
  try {
    const answer = await fetch(new URL(`languages/${name}.json`, import.meta.url));
    return answer.ok ? await answer.json() : {};
  } catch {
    return {};
  }
}

app.ui?.settings?.addEventListener?.("Comfy.Locale.change", readTable);
await readTable();  // before any module that imports this one speaks
