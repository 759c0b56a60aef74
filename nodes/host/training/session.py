"""SaRA Train while its session goes on: what the node shows, with the pictures in between, and when it is stopped."""

import logging
import traceback
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import comfy.utils

from ....sara_core.errors import DeltaError
from ....sara_core.foreign_text import plain
from ....sara_core.memory.estimate import out_of_memory_advice
from ....sara_core.training.host import Host, StepDone
from ....sara_core.training.record import RunSettings
from ....sara_core.training.run import Run
from ....sara_core.wording import Sentence
from ..words import WORDS
from .estimate import estimate, is_out_of_memory, shortage
from .ending import Ending
from .isolation import TrainingModel
from .news import News
from .previews import side_by_side
from .samples import Samples


class NodeHost(Host):
    """The node while it trains: its progress bar with the pictures, its text, the log.

    training: the model inside `training_model`
    gradient_checkpointing: whether it is on, for the advice that a run gets which needs too much memory
    samples: draws pictures in between, or None
    say: shows a text on the node
    news: of the run, for the page
    """

    words = WORDS

    def __init__(
        self, training: TrainingModel, settings: RunSettings, gradient_checkpointing: bool, samples: Samples | None,
        say: Callable[[str], None], news: News,
    ):  # fmt: skip
        super().__init__()
        self.training, self.settings, self.gradient_checkpointing = training, settings, gradient_checkpointing
        self.samples, self.say, self.news, self.estimate = samples, say, news, None
        self.progress = comfy.utils.ProgressBar(settings.steps)
        self.is_early = False

    def begin(self, run: Run, is_resumed: bool) -> None:
        """Before the first step: what is known of the run, and what the model draws before it is trained."""
        self.news.is_doing("preparing", "Measuring how much memory this training takes")
        self.foretell_memory(run)
        self.news.begins(run, None if self.samples is None else self.samples.captions)
        if self.samples is not None and not is_resumed:
            self.progress.update_absolute(0, None, self._preview(0))

    def foretell_memory(self, run: Run) -> None:
        """Say what a run will take, before its first step, and warn if there is not as much."""
        self.estimate = estimate(self.training, run.training)
        if self.estimate is None:
            return
        self.say(f"memory: {self.estimate}")
        self.news.estimated(str(self.estimate))
        self.log(f"this training takes {self.estimate}")
        if warning := shortage(self.training, self.estimate, self.memory_advice()):
            self.warn("memory", warning)

    def check_interrupt(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    def finish_requested(self) -> bool:
        self.is_early = self.news.live.was_asked_to("finish")
        return self.is_early

    def save_requested(self) -> bool:
        return self.news.live.was_asked_to("save")

    def after_step(self, step: int) -> None:
        is_due = self.samples is not None and self.samples.is_due(step)
        is_wanted = self.news.live.was_asked_to("sample") or is_due
        self.progress.update_absolute(step, None, self._preview(step) if is_wanted else None)

    def show_step(self, step: StepDone) -> None:
        self.news.step_is_done(step)
        memory = [] if self.estimate is None else [f"memory: {self.estimate}"]
        self._show("\n".join([f"{step}, {step.time_left}", *memory]))

    def show_held_out(self, step: int, loss: float) -> None:
        self.news.live.add_held_out(step, loss)
        self.log(f"after step {step}: loss {loss:.4f} on pictures held out")

    def saved_snapshot(self, path: Path) -> None:
        self.news.is_snapshot(path)

    def saved_on_request(self, kept: str) -> None:
        self.log(kept)
        self.say(kept)
        self.news.is_saved(kept)

    def show_report(self, text: str) -> None:
        self.log(text)
        is_early = self.is_early and self.news.run.training.step < self.settings.steps
        self._show(self._in_words(self.news.ends("early" if is_early else "finished")))

    def warn(self, kind: str, text: str) -> None:
        super().warn(kind, text)
        self.news.is_warned(kind, text)

    def show_warning(self, text: str) -> None:
        self.log(text, logging.WARNING)
        self.say(text)

    def log(self, text: str, level: int = logging.INFO) -> None:
        logging.log(level, f"SaRA: {plain(text)}")

    def ended_early(self, kept: str, is_said: bool) -> None:
        self.log(f"training ended early. {kept}", logging.WARNING)
        self.say(kept)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return is_out_of_memory(error)

    def memory_advice(self) -> str:
        return out_of_memory_advice(
            self.estimate, gradient_checkpointing=self.gradient_checkpointing, batch_size=self.settings.batch_size,
            grad_accumulation=self.settings.grad_accumulation, setting=self.words.setting,
        )  # fmt: skip

    @staticmethod
    def _in_words(ending: Ending) -> str:
        return " ".join(said["english"] for said in ending.sentences())

    def _show(self, text: str) -> None:
        self.say("\n".join([text, *self.warnings.values()]))

    def _preview(self, step: int) -> tuple | None:
        """What the progress bar shows of the pictures drawn after a step, if they can be drawn."""
        self.news.is_doing("sampling", "Drawing the pictures of step {step}", step=step)
        pictures = []
        try:
            pictures = self.samples.draw()
        except comfy.model_management.InterruptProcessingException:  # an Exception in older hosts
            raise
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold what the next step needs the memory for
            cause = self.cause(error)
            self.warn("pictures", Sentence(
                "Training goes on without the pictures of step {step}. {why}", step=step, why=cause
            ))  # fmt: skip
        self.training.reload()
        if not pictures:
            return None
        try:
            self.news.is_drawn(step, self.samples.save(step, pictures))
        except DeltaError as error:
            self.warn("pictures", Sentence(
                "The pictures of step {step} are shown, but not kept. {why}", step=step, why=error.said
            ))  # fmt: skip
        row = side_by_side([drawn.picture for drawn in pictures])
        return "JPEG", row, max(row.size)
