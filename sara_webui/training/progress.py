"""A training as the tab and the HTTP interface see it, and what they ask of it. Written by one thread, read by others.
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sara_core.errors import TrainingError
from sara_core.training.curve import Curve
from sara_core.wording import clock_time, readable_size

MOST_POINTS = 400
OVER = ("finished", "stopped", "failed")
REQUESTS = ("stop", "finish", "save", "sample")


class Progress:
    """name: of the delta; values: what was set, as settings.ALL

    phase: "waiting", "preparing", "training", or one of OVER; message: what it does just now, or how it ended
    step, steps, seconds_per_step, seconds_left: None before they are known
    estimate: of the memory that it will take, in words
    memory: bytes that this process has now, and had at most, of the device that trains
    warnings: by their kind; delta: the file that was written last, None before; snapshot: the name for resuming the run
    drawn: step → the pictures' files, in the order of the prompts
    """

    def __init__(self, name: str, values: Mapping[str, Any]):
        self.name, self.values = name, dict(values)
        self.phase, self.message = "waiting", "Waiting for what the WebUI is doing now"
        self.step, self.steps = 0, int(values["steps"])
        self.seconds_per_step: float | None = None
        self.seconds_left: float | None = None
        self.estimate: str | None = None
        self.memory: tuple[int, int] | None = None
        self.warnings: dict[str, str] = {}
        self.delta: Path | None = None
        self.snapshot: str | None = None
        self.drawn: dict[int, list[Path]] = {}
        self.losses = Curve()
        self._lock, self._asked = threading.Lock(), set()

    @property
    def is_over(self) -> bool:
        return self.phase in OVER

    def tell(self, **changes: Any) -> None:
        """Set some of the fields at once."""
        with self._lock:
            for name, value in changes.items():
                setattr(self, name, value)

    def add_loss(self, step: int, loss: float) -> None:
        """Add a point to the curve."""
        with self._lock:
            self.losses.add(step, loss)

    def ask(self, wanted: str) -> None:
        """Ask for one of REQUESTS, to be done within a step. Raises TrainingError if the training is over, or draws no
        pictures."""
        with self._lock:
            if self.is_over:
                raise TrainingError("This training is over.")
            if wanted == "sample" and not self.values["prompts"].strip():
                raise TrainingError("This training draws no pictures: give it prompts the next time.")
            self._asked.add(wanted)

    def is_asked(self, wanted: str) -> bool:
        """Whether something was asked for that stays asked for."""
        return wanted in self._asked

    def was_asked(self, wanted: str) -> bool:
        """Whether something was asked for since this was last called."""
        with self._lock:
            is_wanted = wanted in self._asked
            self._asked.discard(wanted)
            return is_wanted

    def points(self, most: int = MOST_POINTS) -> list[list]:
        """[step, loss] of at most so many steps."""
        with self._lock:
            return self.losses.thinned(most)

    def as_json(self) -> dict[str, Any]:
        """All of it, without a path: files by their names."""
        now, peak = self.memory or (None, None)
        return {
            "name": self.name, "phase": self.phase, "message": self.message, "step": self.step, "steps": self.steps,
            "seconds_per_step": self.seconds_per_step, "seconds_left": self.seconds_left,
            "estimate": self.estimate, "memory": now, "memory_peak": peak, "warnings": list(self.warnings.values()),
            "delta": self.delta and self.delta.stem, "snapshot": self.snapshot, "losses": self.points(),
            "samples": {step: [path.name for path in paths] for step, paths in self.drawn.items()},
        }  # fmt: skip

    def line(self) -> str:
        """Where it is, in one line."""
        parts = [f"step {self.step} of {self.steps}"] if self.step else []
        if self.losses.points:
            parts.append(f"loss {self.losses.points[-1][1]:.4f}")
        if self.seconds_per_step is not None:
            parts.append(f"{self.seconds_per_step:.2f} s per step")
        if self.seconds_left is not None and not self.is_over:
            parts.append(f"{clock_time(self.seconds_left)} left")
        if self.memory is not None:
            parts.append(f"{readable_size(self.memory[0])} of memory, {readable_size(self.memory[1])} at most")
        return ", ".join(parts)
