// One picture of a training, as large as the window allows; the arrow keys go to the other steps and captions.

import { element } from "../common/dom.js";
import { viewUrl } from "../common/server.js";
import { say } from "../common/words.js";

// samples: of a run's state; row, column: of the picture to begin with; onSnapshot(name, step): see strip.js
export function showLarge(samples, row, column, onSnapshot) {
  const picture = element("img", { alt: "" }), words = element("p", {}), use = element("button", { type: "button" }, say("Use this snapshot"));
  const dialog = element("dialog", { class: "sara-train-large", "aria-label": say("A picture drawn while training") },
    picture, words,
    element("div", { class: "sara-train-buttons" }, use,
      element("button", { type: "button", onclick: () => dialog.close() }, say("Close"))));

  function show(nextRow, nextColumn) {
    const file = samples.columns[nextColumn]?.files[nextRow];
    if (!file) return;
    [row, column] = [nextRow, nextColumn];
    const { step, snapshot } = samples.columns[column];
    const caption = samples.captions[row] || say("picture {number}", { number: row + 1 });
    picture.src = viewUrl(file);
    picture.alt = caption;
    words.textContent = step === 0 ? say("Before training: {caption}", { caption }) : say("After step {step}: {caption}", { step, caption });
    use.hidden = !snapshot;
  }

  use.addEventListener("click", () => {
    const { step, snapshot } = samples.columns[column];
    dialog.close();
    onSnapshot(snapshot, step);
  });
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation();  // the host has commands on these keys
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    if (down || right) show(row + down, column + right);
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());  // beside the picture
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  show(row, column);
  dialog.showModal();
}
