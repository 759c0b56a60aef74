"""One run, from its first step or a snapshot's to a delta on the disk: with snapshots, and a clear end however it
comes. The same for every host."""

import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from ..delta import SparseDelta
from ..errors import SaRAError, TrainingError
from ..wording import Sentence, both
from .disk import check_disk
from .host import Host, Places, StepDone
from .processes import Processes
from .run import Run


class _FinishedEarly(Exception):
    """Raised after a step, with which the run is to end as planned."""


class TrainingSession:
    """Trains a run once.

    processes: those that train it together, of which the first writes and talks; by default this one alone
    """

    def __init__(self, run: Run, places: Places, host: Host, processes: Processes | None = None):
        self.run, self.training, self.places, self.host = run, run.training, places, host
        self.processes = processes or Processes(0, 1, run.store.values.device)

    def resume(self, state: Mapping) -> None:
        """Go on where a snapshot was taken, before `execute`, to the end that the run's settings say, which need not be
        the one that was planned then (Training.load_state). Raises DeltaError if its base or its trained elements are
        others."""
        self.training.load_state(state)

    def execute(self) -> SparseDelta | None:
        """Train to the end; returns the delta, which is on the disk too (Places); None in all processes but the first.

        However the run ends before that, what was trained is kept as a snapshot and as a delta. Errors in words, memory
        that runs out and a stop then are a SaRAError that says where; anything else is raised as it came. A snapshot
        that cannot be written is no reason to end a run; a disk on which the finished delta has no room is one not to
        begin it.
        """
        if warning := self.run.warning(self.host.words):
            self.host.log(warning, logging.WARNING)
        if self.processes.is_first and (warning := check_disk(self.run, self.places)):
            self.host.warn("disk", warning)
        try:
            self._train()
            delta = self.run.delta() if self.processes.is_first else None
            if delta is not None and self.places.keep_without_file is None:
                self._save_finished(delta)
        except BaseException as error:  # a host's way to stop may be no Exception
            traceback.clear_frames(error.__traceback__)  # they hold the step's activations, and saving needs memory
            kept = self._kept(not isinstance(error, TrainingError), self.places.save_stopped)
            told = self._in_words(error, kept)
            self.host.ended_early(kept, is_said=told is not None)
            if told is None:
                raise
            raise told from error
        if delta is not None:
            if self.places.keep_without_file is not None:
                self._keep_until_saved(delta)
            self.host.show_report(self.run.report())
        return delta

    def _train(self) -> None:
        steps, before, start = self.run.settings.steps, self.training.step, time.monotonic()

        def on_step(step: int, loss: float):
            self.host.after_step(step)
            self._measure_held_out()
            if self.places.snapshots.is_due(step, steps, self.places.snapshot_every):
                self._try_a_snapshot(Sentence("Training goes on without a snapshot of step {step}.", step=step))
            if self.host.save_requested() and self.processes.is_first:
                self.host.saved_on_request(self._kept(True, self.places.save_on_request))
            per_step = (time.monotonic() - start) / (step - before)
            self.host.show_step(StepDone(step, steps, loss, per_step))
            # Together, after a whole step: a process that is left alone would wait for the others for ever.
            if self.processes.any(self.host.stop_requested()) and step < steps:
                raise KeyboardInterrupt
            if self.processes.any(self.host.finish_requested()):
                raise _FinishedEarly

        self._measure_held_out()
        with contextlib.suppress(_FinishedEarly):
            self.training.run(on_step, self.host.check_interrupt)

    def _measure_held_out(self) -> None:
        step, held_out = self.training.step, self.run.held_out
        if held_out is not None and held_out.is_due(step, self.run.settings.steps):
            self.host.show_held_out(step, held_out.measure(step, self.host.check_interrupt))

    def _try_a_snapshot(self, otherwise: Sentence) -> None:
        if not self.processes.is_first:
            return
        try:
            self._save_snapshot()
        except Exception as error:  # a full disk is no reason to end a run that can still be finished
            self.host.warn("snapshots", both(otherwise, self.host.cause(error)))

    def _save_snapshot(self) -> Path:
        training = self.training
        path = self.places.snapshots.save(training.step, training.state(), asdict(self.run.settings))
        self.host.saved_snapshot(path)
        return path

    def _save_finished(self, delta: SparseDelta) -> None:
        """The delta first, and only then away with the snapshots, but for one to train on from."""
        self.places.save_finished(delta)
        self.places.snapshots.discard()
        if self.places.keeps_last_snapshot or self.training.step < self.run.settings.steps:
            self._try_a_snapshot(Sentence("There is no snapshot of step {step}.", step=self.training.step))

    def _keep_until_saved(self, delta: SparseDelta) -> None:
        """On the disk, until somebody saves it; if that fails, a snapshot."""
        try:
            self._save_finished(delta)
            return
        except Exception as error:
            cause = self.host.cause(error)
        with contextlib.suppress(Exception):  # where one folder cannot be written, the other perhaps can
            self._save_snapshot()
        self.places.keep_without_file(delta)
        left = self.places.snapshots.existing()
        fallback = self.host.words.should_saving_fail(left[-1]) if left else Sentence("There is no snapshot of it.")
        self.host.warn("finished", Sentence(
            "The finished delta could not be kept on the disk: save it now. {fallback} {why}", fallback=fallback,
            why=cause,
        ))  # fmt: skip

    def _kept(self, resumable: bool, save: Callable[[SparseDelta], Path] | None) -> str:
        """Save what was trained so far, the snapshot and the delta each on its own; returns sentences about both."""
        steps, words = self.training.step, self.host.words
        if steps == 0:
            return Sentence("No step was completed, so there is nothing to keep.")
        if not self.processes.is_first:
            return "What was trained is kept by the first process."
        go_on = ""
        if resumable:
            try:
                go_on = words.go_on(self._save_snapshot())
            except Exception as error:
                go_on = both(Sentence("There is no snapshot of it."), self.host.cause(error))
        if save is None:
            return go_on
        try:
            path = save(self.run.delta())
            kept = Sentence("What was trained in {steps} steps is in {place}.", steps=steps, place=words.place(path))
        except Exception as error:
            kept = Sentence(
                "What was trained in {steps} steps could not be saved as a delta. {why}", steps=steps,
                why=self.host.cause(error),
            )
        return both(kept, go_on) if go_on else kept

    def _in_words(self, error: BaseException, kept: str) -> SaRAError | None:
        """What to raise in an error's place; None for the error itself."""
        step, steps = self.training.step, self.run.settings.steps
        if isinstance(error, SaRAError):
            return type(error)(both(error.said, kept))
        if isinstance(error, KeyboardInterrupt):
            return TrainingError(Sentence(
                "Stopped after step {step} of {steps}. {kept}", step=step, steps=steps, kept=kept
            ))  # fmt: skip
        if self.host.is_out_of_memory(error):
            step = min(step + 1, steps)
            return TrainingError(Sentence(
                "Memory ran out at step {step}. {kept} {advice}", step=step, kept=kept,
                advice=self.host.memory_advice(),
            ))  # fmt: skip
        return None
