"""What the page is told of a training while it goes on."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management
import psutil
import torch

from ....sara_core.training.host import StepDone
from ....sara_core.training.run import Run
from .. import folders
from ..web.run_state import sentence
from ..web.runs import LiveRun, how_it_ended
from .ending import Ending


class News:
    """Turns what happens in a run into its state.

    live: the run as the page follows it
    snapshots: step → what was written of it; delta: the file that is kept, None before there is one
    """

    def __init__(self, live: LiveRun, device: torch.device):
        self.live, self.device = live, device
        self.snapshots: dict[int, Path] = {}
        self.delta: Path | None = None
        self.run: Run | None = None
        self._began = time.monotonic()
        self._peak = 0
        if device.type == "cuda":  # or it would be the most of all that the host has done since it was started
            torch.cuda.reset_peak_memory_stats(device)

    def begins(self, run: Run, captions: Sequence[str] | None) -> None:
        """captions: of the pictures drawn in between, None if there are none"""
        self.run = run
        training = run.training
        for step, loss in enumerate(training.losses, 1):
            self.live.add_loss(step, loss)
        samples = None if captions is None else {"captions": list(captions), "columns": []}
        self.live.tell(
            phase="training", message=None, step=training.step, steps=run.settings.steps, samples=samples,
            marks=self._adjustments(), memory=self._memory(),
        )  # fmt: skip

    def is_doing(self, phase: str, key: str, **values) -> None:
        self.live.tell(phase=phase, message=sentence(key, **values))

    def estimated(self, memory: str) -> None:
        self.live.tell(estimate=sentence("Memory: {memory}", memory=memory))

    def step_is_done(self, step: StepDone) -> None:
        self.live.add_loss(step.number, step.loss)
        self.live.tell(
            phase="training", message=None, step=step.number, steps=step.steps,
            rate=self.run.training.optimizer.param_groups[0]["lr"],
            seconds_per_step=step.seconds_per_step, seconds_left=step.seconds_left, memory=self._memory(),
            marks=[mark for mark in self.live.state.marks if mark["kind"] == "snapshot"] + self._adjustments(),
        )  # fmt: skip

    def is_drawn(self, step: int, files: Sequence[Path]) -> None:
        """Pictures of a step, in the order of their captions."""
        samples = self.live.state.samples
        column = {"step": step, "snapshot": None, "files": [folders.as_output(path) for path in files]}
        columns = [other for other in samples["columns"] if other["step"] != step]
        columns = sorted([*columns, column], key=lambda column: column["step"])
        self.live.tell(samples=self._with_snapshots({**samples, "columns": columns}))

    def is_snapshot(self, path: Path) -> None:
        self.snapshots[self._step] = path
        marks = [mark for mark in self.live.state.marks if mark["step"] != self._step or mark["kind"] != "snapshot"]
        self.live.tell(
            marks=[*marks, {"step": self._step, "kind": "snapshot"}],
            samples=self._with_snapshots(self.live.state.samples),
        )

    def is_warned(self, kind: str, text: str) -> None:
        self.live.tell(warnings={**self.live.state.warnings, kind: sentence(text)})

    def is_saved(self, text: str) -> None:
        self.live.tell(saved=sentence(text))

    def ends(self, kind: str, error: str | None = None) -> Ending:
        """The state of a run that is over; returns what it says."""
        existing, training = self._existing(), self.run.training
        ending = Ending(
            kind, training.step, self.run.settings.steps, training.losses, time.monotonic() - self._began,
            self.run.selection.count, self.delta, existing[max(existing)] if existing else None, error,
        )  # fmt: skip
        self.live.tell(
            phase="finished" if kind == "early" else kind, message=None, step=training.step, seconds_left=0,
            samples=self._with_snapshots(self.live.state.samples), end=ending.told(),
        )  # fmt: skip
        return ending

    @contextmanager
    def ends_with_errors(self) -> Iterator[None]:
        """For a run's course: the error or Cancel that ends it is told, with what is kept, and goes on."""
        try:
            yield
        except BaseException as error:
            if self.run is not None and not self.live.state.is_over:
                self.ends(*how_it_ended(error))
            raise

    @property
    def _step(self) -> int:
        return self.run.training.step

    def _adjustments(self) -> list[dict]:
        return [{"step": step, "kind": "adjustment"} for step, _ in self.run.training.adjustments]

    def _with_snapshots(self, samples: dict | None) -> dict | None:
        """Beside the pictures of a step, the snapshot of that step, as long as it is there."""
        if samples is None:
            return None
        existing = {step: folders.snapshot_title(path) for step, path in self._existing().items()}
        columns = [{**column, "snapshot": existing.get(column["step"])} for column in samples["columns"]]
        return {**samples, "columns": columns}

    def _existing(self) -> dict[int, Path]:
        return {step: path for step, path in self.snapshots.items() if path.exists()}

    def _memory(self) -> dict:
        """What this process has of the device that trains; of those that do not say, what all have."""
        total = comfy.model_management.get_total_memory(self.device)
        if self.device.type == "cuda":
            now, most = torch.cuda.memory_allocated(self.device), torch.cuda.max_memory_allocated(self.device)
        elif self.device.type == "cpu":
            now = most = psutil.Process().memory_info().rss
        else:
            now = most = total - comfy.model_management.get_free_memory(self.device)
        self._peak = max(self._peak, most)
        return {"now": now, "peak": self._peak, "total": total, "device": str(self.device)}
