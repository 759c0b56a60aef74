"""What a training asks of the host that it runs in: where its files go, who is told how it goes, and who stops it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..delta import SparseDelta
from ..errors import SaRAError
from ..memory.estimate import is_out_of_memory
from ..wording import Sentence, clock_time
from .snapshot import RunSnapshots
from .words import Words


@dataclass(frozen=True)
class Places:
    """Where a run leaves its files; each callable raises DeltaError if its file cannot be written.

    snapshots: of the run, one after every `snapshot_every` steps (0 = only when it is stopped)
    save_stopped: writes what a run that was stopped has trained, where it replaces nothing; returns the file's path
    save_finished: writes the delta of a run that came to its end, after which its snapshots go
    keep_without_file: for a host that hands the finished delta on in memory, where somebody will save it: told of a
        delta that could not be written, and that the run's snapshots stay for it. Without this, such a run has ended
        early.
    save_on_request: writes what a run has trained so far, where it replaces nothing; returns the file's path
    keeps_last_snapshot: whether a finished run leaves a snapshot of its last step, to be trained on
    other_bytes: that the host itself writes meanwhile, as pictures
    """

    snapshots: RunSnapshots
    snapshot_every: int
    save_stopped: Callable[[SparseDelta], Path]
    save_finished: Callable[[SparseDelta], None]
    keep_without_file: Callable[[SparseDelta], None] | None = None
    save_on_request: Callable[[SparseDelta], Path] | None = None
    keeps_last_snapshot: bool = False
    other_bytes: int = 0


@dataclass(frozen=True)
class StepDone:
    """A step that is done, of `steps`; seconds_per_step: of those that this process has done so far"""

    number: int
    steps: int
    loss: float
    seconds_per_step: float

    def __str__(self) -> str:
        return f"step {self.number} of {self.steps}, loss {self.loss:.4f}"

    @property
    def time_left(self) -> str:
        """"1:02:03 left", or "0:09 left"."""
        return f"{clock_time(self.seconds_left)} left"

    @property
    def seconds_left(self) -> float:
        """Of the steps that are to come."""
        return self.seconds_per_step * (self.steps - self.number)


class Host:
    """A host that says nothing and stops nothing; others override what they do differently.

    warnings: the last of each kind that was said so far
    """

    words = Words()

    def __init__(self):
        self.warnings: dict[str, str] = {}

    def check_interrupt(self) -> None:
        """Called before each forward pass; raises whatever is to end the run now."""

    def stop_requested(self) -> bool:
        """Asked after each step; true ends the run there, as Ctrl-C in a terminal does."""
        return False

    def finish_requested(self) -> bool:
        """Asked after each step; true makes it the last one: the run ends as if no more had been planned."""
        return False

    def save_requested(self) -> bool:
        """Asked after each step; true saves a snapshot and, where Places can, a delta; the run goes on."""
        return False

    def after_step(self, step: int) -> None:
        """Called when a step is done and Δ is at rest, before its snapshot: for pictures."""

    def show_step(self, step: StepDone) -> None:
        """Show where the run is."""

    def show_held_out(self, step: int, loss: float) -> None:
        """Show the mean loss on the pictures that are held out, after so many steps; NaN if it is not finite."""

    def saved_snapshot(self, path: Path) -> None:
        """Note a snapshot that is on the disk."""

    def saved_on_request(self, kept: str) -> None:
        """Show where what was to be saved is, in sentences."""
        self.log(kept)

    def show_report(self, text: str) -> None:
        """Show what the run did, once it is over."""

    def show_warning(self, text: str) -> None:
        """Show what went wrong beside the training, which goes on."""

    def log(self, text: str, level: int = logging.INFO) -> None:
        """Note what is of use to whoever looks for a cause later."""

    def ended_early(self, kept: str, is_said: bool) -> None:
        """Note what is kept of a run that ended before its last step; is_said: the error says it, too."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an error says that memory was not enough."""
        return is_out_of_memory(error)

    def memory_advice(self) -> str:
        """A sentence: what to set to need less memory."""
        return "Train on smaller images, or fewer weights."

    def warn(self, kind: str, text: str) -> None:
        """Show a warning and remember it; a later one of the same kind takes its place."""
        self.warnings[kind] = text
        self.show_warning(text)

    def cause(self, error: Exception) -> str:
        """What went wrong, for people."""
        if self.is_out_of_memory(error):
            return Sentence("Memory ran out.")
        return error.said if isinstance(error, SaRAError) else f"{type(error).__name__}: {error}"
