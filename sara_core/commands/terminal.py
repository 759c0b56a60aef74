"""A training in a terminal: its lines on standard error, Ctrl-C, and where its files go beside OUT."""

import contextlib
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from ..files.run_name import numbered, reserved
from ..foreign_text import visible
from ..training.free_name import save_under_a_free_name
from ..training.host import Host, Places, StepDone
from ..training.processes import Processes
from ..training.snapshot import RunSnapshots, run_of
from ..training.words import Words

PROGRESS_LINES = 100
SNAPSHOTS_KEPT = 2


def option(setting: str) -> str:
    """"batch_size" → "--batch-size"."""
    return f"--{setting.replace('_', '-')}"


WORDS = Words(
    setting=option,
    go_on="To go on with it: --resume {}".format,
    other_run="this one is another",
    same_run="Give the same images and options as then, or leave --resume out for a new run.",
)


class Terminal(Host):
    """The terminal of the first of the processes that train together; the others have none.

    advice: what to set to need less memory
    """

    words = WORDS

    def __init__(self, processes: Processes, advice: str):
        super().__init__()
        self.processes, self.advice, self.is_stopped = processes, advice, False

    def say(self, text: str) -> None:
        """On standard error: standard output is for the report."""
        if self.processes.is_first:
            sys.stderr.write(f"{visible(text)}\n")
            sys.stderr.flush()

    @contextlib.contextmanager
    def stops(self) -> Iterator[None]:
        """Ctrl-C, and the request to end that a system sends, inside: the first is noted, the second ends at once."""
        signals = (signal.SIGINT, signal.SIGTERM)

        def note(number, frame):
            self.is_stopped = True
            signal.signal(number, before[number])

        before = {number: signal.signal(number, note) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop_requested(self) -> bool:
        return self.is_stopped

    def show_step(self, step: StepDone) -> None:
        if step.number == step.steps or step.number % max(1, step.steps // PROGRESS_LINES) == 0:
            self.say(f"{step}, {step.seconds_per_step:.2f} s per step")

    def show_report(self, text: str) -> None:
        self.say(text)

    def show_warning(self, text: str) -> None:
        self.say(text)

    def log(self, text: str, level: int = logging.INFO) -> None:
        if level >= logging.WARNING:
            self.say(text)

    def ended_early(self, kept: str, is_said: bool) -> None:
        if not is_said:
            self.say(kept)

    def memory_advice(self) -> str:
        return self.advice


def places(target: Path, snapshots: RunSnapshots, snapshot_every: int) -> Places:
    """OUT for the finished delta, which may replace another; for a stopped run's, a name that is free."""
    return Places(
        snapshots, snapshot_every,
        save_stopped=lambda delta: save_under_a_free_name(delta, target),
        save_finished=lambda delta: delta.save(target),
    )  # fmt: skip


@contextlib.contextmanager
def own_snapshots(
    target: Path, resumed: str | None, processes: Processes, kept: int = SNAPSHOTS_KEPT
) -> Iterator[RunSnapshots]:
    """The snapshots of a run, in <OUT>_snapshots, under OUT's name or, if another run has left or is writing some under
    it, OUT's with a number; at most `kept` of them. The folder goes if nothing is left in it."""
    folder, name = target.with_name(f"{target.stem}_snapshots"), target.stem
    if not processes.is_first:  # it writes none
        yield RunSnapshots(folder, name, kept)
        return
    is_here = resumed is not None and Path(resumed).parent.resolve() == folder.resolve()
    before = run_of(resumed) if is_here else None

    def is_taken(name: str) -> bool:
        return bool(RunSnapshots(folder, name, kept).existing())

    try:
        with reserved(folder, before, numbered(name), is_taken) as own:
            yield RunSnapshots(folder, own, kept)
    finally:
        with contextlib.suppress(OSError):  # absent, or with files in it
            folder.rmdir()
