"""A training in a WebUI while it goes on: what is told of it, the pictures in between, and when it is stopped."""

import logging
import time
import traceback
from pathlib import Path

import numpy
import torch
from PIL import Image

from sara_core.files import atomic
from sara_core.foreign_text import plain
from sara_core.memory.estimate import shortage
from sara_core.training.host import Host, StepDone
from sara_core.training.run import Run

from ..console import log
from .host import TrainingHost
from .memory import foretold_memory, free_memory, used_memory
from .places import WORDS
from .progress import Progress
from .samples import Samples


class WebSession(Host):
    """Of one run. samples: None where nothing is drawn; drawn_in: the folder of its pictures; every: steps between"""

    words = WORDS

    def __init__(
        self, host: TrainingHost, progress: Progress, device: torch.device, samples: Samples | None, drawn_in: Path,
        every: int,
    ):  # fmt: skip
        super().__init__()
        self.host, self.progress, self.device = host, progress, device
        self.samples, self.drawn_in, self.every = samples, drawn_in, every
        self._peak = 0

    def begin(self, run: Run, module: torch.nn.Module) -> None:
        """Before the first step: what the run will take, the losses of the steps that were done before, and what the
        model draws untrained. module: with the attached layers"""
        training = run.training
        self.progress.tell(message="Measuring how much memory this training takes")
        if (estimate := foretold_memory(run, module)) is not None:
            self.progress.tell(estimate=str(estimate))
            self.log(f"this training takes {estimate}")
            if warning := shortage(estimate, free_memory(self.device), self.memory_advice()):
                self.warn("memory", warning)
        for step, loss in enumerate(training.losses, 1):
            self.progress.add_loss(step, loss)
        self.progress.tell(step=training.step, steps=run.settings.steps, memory=self._memory())
        if self.samples is not None and training.step == 0:
            self._draw(0)
        self.progress.tell(phase="training", message="Training")

    def check_interrupt(self) -> None:
        if self.stop_requested():
            raise KeyboardInterrupt

    def stop_requested(self) -> bool:
        return self.progress.is_asked("stop") or self.host.is_interrupted()

    def finish_requested(self) -> bool:
        return self.progress.is_asked("finish")

    def save_requested(self) -> bool:
        return self.progress.was_asked("save")

    def after_step(self, step: int) -> None:
        is_wanted = self.progress.was_asked("sample")
        if self.samples is not None and (is_wanted or step % self.every == 0):
            self._draw(step)

    def show_step(self, step: StepDone) -> None:
        self.progress.add_loss(step.number, step.loss)
        self.progress.tell(
            step=step.number, seconds_per_step=step.seconds_per_step, seconds_left=step.seconds_left,
            memory=self._memory(), message="Training",
        )  # fmt: skip
        self.host.show_step(step.number, step.steps)

    def saved_snapshot(self, path: Path) -> None:
        self.progress.tell(snapshot=path.stem)

    def saved_on_request(self, kept: str) -> None:
        self.log(kept)
        self.warn("saved", kept)

    def show_report(self, text: str) -> None:
        self.log(text)
        self.progress.tell(message=f"{text[:1].upper()}{text[1:]}.")

    def show_warning(self, text: str) -> None:
        self.log(text, logging.WARNING)
        self.progress.tell(warnings=dict(self.warnings))

    def log(self, text: str, level: int = logging.INFO) -> None:
        log.log(level, f"SaRA: {plain(text)}")

    def ended_early(self, kept: str, is_said: bool) -> None:
        self.log(f"training ended early. {kept}", logging.WARNING)
        if not is_said:
            self.progress.tell(warnings={**self.warnings, "kept": kept})

    def memory_advice(self) -> str:
        return (
            "To need less: gradient_checkpointing on, a batch_size of 1, a lower resolution or density, or start the "
            "WebUI anew."
        )

    def _memory(self) -> tuple[int, int]:
        now, peak = used_memory(self.device)
        self._peak = max(self._peak, now, peak)
        return now, self._peak

    def _draw(self, step: int) -> None:
        self.progress.tell(message=f"Drawing the pictures of step {step}")
        try:
            files = [
                self._saved(step, number, picture) for number, picture in enumerate(self.samples.draw(), 1)
            ]
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold what the next step needs the memory for
            self.warn("pictures", f"Training goes on without the pictures of step {step}. {self.cause(error)}")
            return
        self.progress.tell(drawn={**self.progress.drawn, step: files})

    def _saved(self, step: int, number: int, picture: torch.Tensor) -> Path:
        self.drawn_in.mkdir(parents=True, exist_ok=True)
        path = self.drawn_in / f"step_{step:07}_{number:02}_{int(time.time())}.png"
        pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        with atomic.replacing(path) as file:
            Image.fromarray(numpy.ascontiguousarray(pixels)).save(file, "PNG")
        return path
