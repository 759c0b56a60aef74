// How a training ended, in plain words, and what can be done next.

import { element } from "../common/dom.js";
import { say, told } from "../common/words.js";
import { drawWith, goOn } from "./actions.js";

export class Ending {
  // announce(sentence): where the panel says what has been done
  constructor(node, announce) {
    [this.node, this.announce] = [node, announce];
    this.element = element("section", { class: "sara-train-ending", "aria-label": say("How the training ended") });
  }

  show(run) {
    const described = JSON.stringify(run.end ?? null);
    if (described === this.shown) return;  // what is being typed would be lost
    this.shown = described;
    this.element.replaceChildren();
    if (run.end) this.element.append(this.words(run.end), this.buttons(run));
  }

  words({ kind, sentences, error }) {
    const said = sentences.map(told);
    if (error && !sentences.some(({ english }) => english === error)) said.unshift(error);
    return element("div", { class: `sara-train-words ${kind}`, tabindex: "0" },
      ...said.map((sentence) => element("p", {}, sentence)));
  }

  buttons(run) {
    const { kind, snapshot, delta } = run.end;
    const isShort = snapshot && kind !== "finished" && run.step < run.steps;
    return element("div", { class: "sara-train-buttons" },
      ...(isShort ? [button(say("Resume"), say("Choose its snapshot under resume, to go on to step {steps}", run), () => this.resume(run))] : []),
      ...(snapshot && kind !== "failed" ? this.trainOn(run) : []),
      ...(delta ? [button(say("Draw with it"), say("Choose the delta in SaRA Loader; adds that node if there is none"), () => this.draw(delta))] : []));
  }

  trainOn(run) {
    const more = element("input", {
      type: "number", min: "1", step: "1", value: String(run.steps), "aria-label": say("How many more steps"),
      onkeydown: (event) => event.stopPropagation(),  // the host has commands on keys
    });
    const words = say("Choose its snapshot under resume, and raise steps by this number");
    return [element("span", { class: "sara-train-more" }, button(say("Train on"), words, () => this.more(run, Number(more.value))), "+", more)];
  }

  async resume({ end, step, steps }) {
    await this.attempt(() => goOn(this.node, end.snapshot, steps), say("Press Run to go on from step {step}.", { step }));
  }

  async more({ end, steps }, number) {
    const all = steps + Math.max(1, Math.round(number) || 1);
    await this.attempt(() => goOn(this.node, end.snapshot, all), say("Press Run to train on to step {steps}.", { steps: all }));
  }

  async draw(delta) {
    await this.attempt(async () => {
      const isNew = await drawWith(this.node, delta);
      return isNew ? say("SaRA Loader is beside this node: connect it to a sampler.") : say("SaRA Loader draws with it now.");
    });
  }

  async attempt(action, done) {
    try {
      this.announce((await action()) ?? done);
    } catch (error) {
      console.error(error);
      this.announce(say("That did not work: {why}", { why: error.message }));
    }
  }
}

function button(words, title, onclick) {
  return element("button", { type: "button", title, onclick }, words);
}
