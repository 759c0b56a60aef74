// How a training goes, in a few words.

import { say, told } from "../common/words.js";
import { clock } from "./numbers.js";
import { isOver } from "./runs.js";

const PHASES = {
  preparing: "Preparing", training: "Training", sampling: "Drawing pictures", saving: "Saving",
  finished: "Finished", stopped: "Stopped", failed: "Failed",
};

// Of a phase that this page knows nothing of nobody can say that it goes on.
export function isDone(run) {
  return isOver(run) || !(run.phase in PHASES);
}

export function phaseWords({ message, phase, step, steps }) {
  const doing = message ? told(message) : say(PHASES[phase] ?? phase);
  return step && !message ? say("{doing}: step {step} of {steps}", { doing, step, steps }) : doing;
}

export function timeWords(run) {
  const { seconds_left: left, end } = run;
  if (isDone(run)) return end?.seconds ? clock(end.seconds) : "";
  return left ? say("{time} left", { time: clock(left) }) : "";
}
