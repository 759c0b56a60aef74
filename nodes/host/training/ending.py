"""How a training ended, in plain words: what was trained, what is kept of it and where, and what to do next."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ....sara_core.wording import clock_time
from .. import folders
from ..web.run_state import sentence
from ..web.runs import change_ends

# Of so large a part of a run's steps, at its beginning and at its end, the losses are averaged.
PART = 0.1


@dataclass
class Ending:
    """kind: "finished"; "early", where somebody asked for that; "stopped", by Cancel; "failed"
    step, steps: how many are done, and were planned; losses: of all steps, NaN for those that were skipped
    seconds: that this process has trained for; trained: number of values
    delta, snapshot: the files that are kept; error: a sentence, if it failed
    """

    kind: str
    step: int
    steps: int
    losses: Sequence[float]
    seconds: float
    trained: int
    delta: Path | None = None
    snapshot: Path | None = None
    error: str | None = None

    def told(self) -> dict:
        """As RunState.end."""
        return {
            "kind": self.kind, "sentences": list(self.sentences()),
            "delta": self.delta and folders.delta_name(self.delta),
            "snapshot": self.snapshot and folders.snapshot_title(self.snapshot),
            "seconds": self.seconds, "loss": _mean(self.losses, last=True), "trained": self.trained,
            "error": self.error,
        }  # fmt: skip

    def sentences(self) -> Iterator[dict]:
        yield self._what_happened()
        first, last = _mean(self.losses, last=False), _mean(self.losses, last=True)
        if first is not None and self.kind != "failed":
            yield sentence(
                "The loss was {first} in the beginning and {last} in the end.", first=f"{first:.4f}", last=f"{last:.4f}"
            )
        yield from self._what_is_kept()
        if self.snapshot is not None:
            yield self._how_to_go_on(folders.snapshot_title(self.snapshot))

    def _what_happened(self) -> dict:
        values = {
            "count": f"{self.trained:,}", "step": self.step, "steps": self.steps, "time": clock_time(self.seconds),
        }  # fmt: skip
        if self.kind == "failed":
            return sentence(self.error or "")
        if self.kind == "stopped" and self.step == 0:
            return sentence("Stopped before the first step was done: there is nothing to keep.")
        key = {
            "finished": "Trained {count} weights in {steps} steps, in {time}.",
            "early": "Finished early: trained {count} weights in {step} of {steps} steps, in {time}.",
            "stopped": "Stopped after {step} of {steps} steps, in {time}.",
        }[self.kind]
        return sentence(key, **{name: value for name, value in values.items() if f"{{{name}}}" in key})

    def _what_is_kept(self) -> Iterator[dict]:
        if self.delta is None or self.kind == "failed":  # the error says it
            return
        place = _place(self.delta)
        if self.kind == "stopped":
            yield sentence("What was trained is in {place}.", place=place)
        else:
            yield sentence("Save it with SaRA Save; until then it is in {place}.", place=place)

    def _how_to_go_on(self, snapshot: str) -> dict:
        if self.step < self.steps:
            key = "To go on to step {steps}, choose '{snapshot}' under resume."
        else:
            key = "To train on, choose '{snapshot}' under resume, and more than {steps} steps."
        return sentence(key, snapshot=snapshot, steps=self.steps)


def _place(path: Path) -> str:
    return f"output/{folders.relative_to_output(path)}"


def _mean(losses: Sequence[float], last: bool) -> float | None:
    finite = [loss for loss in losses if math.isfinite(loss)]
    count = max(1, round(PART * len(finite)))
    part = finite[-count:] if last else finite[:count]
    return sum(part) / count if part else None


def delta_was_saved(copy: Path, path: Path) -> None:
    """The copy of a finished run's delta has gone for a file that somebody wanted: the end of its run says so."""
    was, name = folders.delta_name(copy), folders.delta_name(path)

    def changed(end: dict) -> dict:
        if end["delta"] != was:
            return end
        saved = sentence("Saved as {place}.", place=_place(path))
        said = [saved if one["values"].get("place") == _place(copy) else one for one in end["sentences"]]
        return {**end, "delta": name, "sentences": said}

    change_ends(changed)
