// What our part of the page says, in the page's language; English stands where it is used, and is the key.

import { app } from "../../../scripts/app.js";

const SENTENCES = new Map();  // of the page's language, English → translated

// "{steps} steps" with { steps: 5 } → "5 steps", or the same in the page's language.
export function say(english, values = {}) {
  const sentence = SENTENCES.get(english) ?? english;
  return sentence.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

export function language() {
  return app.ui?.settings?.getSettingValue?.("Comfy.Locale") ?? "en";
}
