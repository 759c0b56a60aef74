"""A training as the page sees it: one JSON object, with finite numbers and sentences that can be translated."""

import math
from dataclasses import dataclass, field
from typing import Any

from ....sara_core.wording import Sentence
from ....sara_core.training.curve import Curve

# Points of a curve: what the page is given of one, and what a node keeps of it with a workflow's results.
MOST_POINTS, MOST_POINTS_KEPT = 1000, 200

OVER = ("finished", "stopped", "failed")


def sentence(key: str, **values: Any) -> dict:
    """Something that the page says, in its language if it knows the key.

    key: the English sentence, with the names of `values` in braces; or a Sentence, which has its own
    """
    said = key if isinstance(key, Sentence) else Sentence(key, **values)
    values = {name: _as_json(value) for name, value in said.values.items()}
    return {"key": said.key, "values": values, "english": str(said)}


def _as_json(value: Any) -> Any:
    """A value of a sentence; what is no whole number as text, as in English: JSON does not have all floats."""
    if isinstance(value, Sentence):
        return sentence(value)
    return value if isinstance(value, int) else str(value)


@dataclass
class RunState:
    """The state of one run of SaRA Train.

    run: a name of its own, hexadecimal; prompt, node, workflow: who asked for it, None where that is not known
    phase: "preparing", "training", "sampling", "saving", or one of OVER; message: what it does just now, a `sentence`
    rate: the learning rate of the last step; estimate: a `sentence` on the memory that it will take
    memory: {"now", "peak", "total": bytes, "device"}
    marks: {"step", "kind": "adjustment" or "snapshot"} of each
    samples: {"captions", "columns": [{"step", "snapshot", "files"}]}, None for a run without
    saved: a `sentence` on what became of the last request to save; warnings: kind → `sentence`
    end: how it ended (training.ending)
    """

    run: str
    prompt: str | None
    node: str | None
    workflow: str | None
    phase: str = "preparing"
    message: dict | None = None
    step: int = 0
    steps: int = 0
    losses: Curve = field(default_factory=Curve)
    held_out: Curve = field(default_factory=Curve)
    rate: float | None = None
    seconds_per_step: float | None = None
    seconds_left: float | None = None
    memory: dict | None = None
    estimate: dict | None = None
    marks: list[dict] = field(default_factory=list)
    samples: dict | None = None
    saved: dict | None = None
    warnings: dict[str, dict] = field(default_factory=dict)
    end: dict | None = None

    @property
    def is_over(self) -> bool:
        return self.phase in OVER

    def whole(self, most: int = MOST_POINTS) -> dict:
        """All of it. Of each curve at most so many points; `points` and `held_out_points` say how many there are."""
        return {
            **self._without_curves(),
            "losses": self.losses.thinned(most), "held_out": self.held_out.thinned(most),
            "points": len(self.losses.points), "held_out_points": len(self.held_out.points),
        }  # fmt: skip

    def since(self, points: int, held_out_points: int) -> dict:
        """What an event says: all but the points of the curves that were there before, which are counted."""
        return {
            **self._without_curves(),
            "new_losses": self.losses.points[points:], "first_new": points,
            "new_held_out": self.held_out.points[held_out_points:], "first_new_held_out": held_out_points,
        }  # fmt: skip

    def _without_curves(self) -> dict:
        names = [name for name in self.__dataclass_fields__ if name not in ("losses", "held_out")]
        return _finite({**{name: getattr(self, name) for name in names}, "warnings": list(self.warnings.values())})


def _finite(value: Any) -> Any:
    """A copy in which what is no number is None, because JSON has no word for it."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
