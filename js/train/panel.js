// What SaRA Train shows of its run: the curve, the numbers, the pictures drawn in between, what can be asked of the run,
// and in the end how it went.

import { element } from "../common/dom.js";
import { ask } from "../common/server.js";
import { say, told } from "../common/words.js";
import { goOn } from "./actions.js";
import { Curve } from "./curve.js";
import { Ending } from "./ending.js";
import { gigabytes, rate, short } from "./numbers.js";
import { Strip } from "./strip.js";
import { isDone as isRunDone, phaseWords, timeWords } from "./wording.js";

const ROW = 58, HEAD = 22;  // pixels of the strip, as panel.css has them
const MOST_ROWS = 3;
export const HEIGHT = 340, WITHOUT_CURVE = 150;  // pixels of the graph, without the strip

const WORKING = ["training", "sampling", "saving"];
const REQUESTS = {
  sample: {
    words: "Sample now", does: "Draws pictures after this step, and goes on",
    done: "Pictures will be drawn after this step.",
  },
  save: {
    words: "Save now", does: "Saves a snapshot and the delta after this step, and goes on",
    done: "It will be saved after this step.",
  },
  finish: {
    words: "Finish early", does: "Ends after this step as if it were the last one; the workflow goes on with what was trained",
    done: "It will end after this step.",
  },
};
const NO_SAMPLES = "Connect SaRA Train Samples before a training to draw pictures in it";

// The pixels of the graph that a run's panel takes, the same from its first picture to its last.
export function heightFor(run) {
  if (hasNoCurve(run)) return WITHOUT_CURVE;
  return run.samples ? HEIGHT + HEAD + ROW * Math.min(MOST_ROWS, run.samples.captions.length) + 6 : HEIGHT;
}

// A training that ended before its first step has nothing to draw.
function hasNoCurve(run) {
  return isRunDone(run) && !run.losses.length && !run.samples;
}

export class Panel {
  constructor(node) {
    this.phase = element("span", { class: "sara-train-phase" });
    this.left = element("span", { class: "sara-train-left" });
    this.bar = element("div", { class: "sara-train-bar" }, element("div", {}));
    this.curve = new Curve();
    this.numbers = element("dl", { class: "sara-train-numbers" });
    this.warnings = element("div", { class: "sara-train-warnings", tabindex: "0", role: "note" });
    this.said = element("p", { class: "sara-train-said", role: "status" });
    this.requests = Object.fromEntries(Object.keys(REQUESTS).map((wanted) => [wanted, this.requester(wanted)]));
    this.buttons = element("div", { class: "sara-train-buttons" }, ...Object.values(this.requests));
    this.ending = new Ending(node, (sentence) => this.announce(sentence));
    this.strip = new Strip((snapshot, step) => goOn(node, snapshot).then(
      () => this.announce(say("Press Run to go on from step {step}.", { step })),
      (error) => this.announce(say("That did not work: {why}", { why: error.message })),
    ));
    const keep = (event) => event.stopPropagation();  // from the graph, which would move, and has commands on keys
    this.element = element("div", {
      class: "sara-train sara-train-waits", role: "region", "aria-label": say("Training"), onpointerdown: keep, onkeydown: keep,
    },
      element("div", { class: "sara-train-head" }, this.phase, this.left), this.bar, this.curve.element,
      this.warnings, this.numbers, this.ending.element, this.said, this.buttons, this.strip.element);
    this.phase.textContent = say("After Run you see here how it learns.");
  }

  // Draws a run, at most once a frame, however often it changes.
  show(run) {
    if (this.run?.run !== run.run) this.forget();
    this.run = run;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.draw(this.run);
    });
  }

  forget() {
    this.pressed = undefined;
    this.announce("");
  }

  draw(run) {
    const isDone = isRunDone(run);
    this.element.classList.remove("sara-train-waits");
    this.element.dataset.phase = run.phase;
    this.phase.textContent = this.phase.title = phaseWords(run);
    this.left.textContent = timeWords(run);
    this.bar.firstChild.style.width = `${run.steps ? (100 * run.step) / run.steps : 0}%`;
    this.element.classList.toggle("sara-train-no-curve", hasNoCurve(run));
    this.curve.show(run);
    this.drawWarnings(run.warnings ?? []);
    this.numbers.hidden = this.buttons.hidden = isDone;
    this.ending.element.hidden = !isDone;
    if (isDone) {
      this.ending.show(run);
      if ([memoryWords(run), savedWords(run)].includes(this.said.textContent)) this.announce("");
    } else this.drawNumbers(run);
    this.drawRequests(run, isDone);
    if (!isDone) this.drawSaved(run);
    this.strip.element.hidden = !run.samples;
    this.strip.show(run.samples);
  }

  drawNumbers(run) {
    const { losses, rate: now, seconds_per_step: seconds, memory } = run;
    const mean = this.curve.mean.at(-1)?.[1];
    const shown = [
      [say("Loss"), mean === undefined ? "–" : short(mean)],
      [say("Learning rate"), now ? rate(now) : "–"],
      [say("Speed"), speed(seconds)],
      [say("Memory"), memory ? say("{now} of {total} GB", { now: gigabytes(memory.now), total: gigabytes(memory.total) }) : "–",
        memory && say("At most {peak} GB so far, of {total} GB of {device}", {
          peak: gigabytes(memory.peak), total: gigabytes(memory.total), device: memory.device,
        })],
      ...(memory ? [[say("Most so far"), say("{peak} GB", { peak: gigabytes(memory.peak) })]] : []),
    ];
    if (!losses.length && run.estimate) this.announce(memoryWords(run));
    this.numbers.replaceChildren(...shown.map(([name, value, title]) =>
      element("div", { title }, element("dt", {}, name), element("dd", {}, value))));
  }

  // Once: what is said later is not to be written over.
  drawSaved(run) {
    const words = savedWords(run);
    if (words && words !== this.saved) {
      if (this.pressed?.wanted === "save") this.pressed = undefined;
      this.announce(words);
    }
    this.saved = words;
  }

  drawWarnings(warnings) {
    const sentences = warnings.map(told);
    this.warnings.hidden = !sentences.length;
    this.warnings.title = sentences.join("\n\n");
    this.warnings.replaceChildren(...sentences.map((sentence) => element("p", {}, sentence)));
  }

  drawRequests({ phase, step, samples }, isDone) {
    if (this.pressed && (isDone || step > this.pressed.step + 1)) this.forget();
    for (const [wanted, button] of Object.entries(this.requests)) {
      const can = WORKING.includes(phase) && (wanted !== "sample" || Boolean(samples));
      button.disabled = !can || this.pressed?.wanted === wanted || this.pressed?.wanted === "finish";
      button.title = say(wanted === "sample" && WORKING.includes(phase) && !samples ? NO_SAMPLES : REQUESTS[wanted].does);
    }
  }

  requester(wanted) {
    return element("button", { type: "button", onclick: () => this.request(wanted) }, say(REQUESTS[wanted].words));
  }

  async request(wanted) {
    this.pressed = { wanted, step: this.run.step };
    this.drawRequests(this.run, false);
    try {
      await ask(`runs/${this.run.run}/${wanted}`, {});
      if (this.pressed) this.announce(say(REQUESTS[wanted].done));
    } catch (error) {
      this.forget();
      this.announce(error.message);
      this.drawRequests(this.run, false);
    }
  }

  announce(sentence) {
    this.said.textContent = this.said.title = sentence;
  }
}

function memoryWords({ estimate }) {
  return estimate && told(estimate);
}

function savedWords({ saved }) {
  return saved && told(saved);
}

function speed(seconds) {
  if (!seconds) return "–";
  return seconds < 0.5
    ? say("{number} steps/s", { number: (1 / seconds).toFixed(1) })
    : say("{number} s/step", { number: seconds.toFixed(seconds < 10 ? 1 : 0) });
}
