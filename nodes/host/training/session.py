"""SaRA Train while its session goes on: what the node shows, with the pictures in between, and when it is stopped."""

import logging
import traceback
from collections.abc import Callable

import comfy.model_management
import comfy.utils

from ....sara_core.errors import DeltaError
from ....sara_core.foreign_text import plain
from ....sara_core.memory.estimate import out_of_memory_advice
from ....sara_core.training.host import Host, StepDone
from ....sara_core.training.record import RunSettings
from ....sara_core.training.run import Run
from ..words import WORDS
from .estimate import estimate, is_out_of_memory, shortage
from .isolation import TrainingModel
from .previews import side_by_side
from .samples import Samples


class NodeHost(Host):
    """The node while it trains: its progress bar with the pictures, its text, the log.

    training: the model inside `training_model`
    gradient_checkpointing: whether it is on, for the advice that a run gets which needs too much memory
    samples: draws pictures in between, or None
    say: shows a text on the node
    """

    words = WORDS

    def __init__(
        self, training: TrainingModel, settings: RunSettings, gradient_checkpointing: bool, samples: Samples | None,
        say: Callable[[str], None],
    ):  # fmt: skip
        super().__init__()
        self.training, self.settings, self.gradient_checkpointing = training, settings, gradient_checkpointing
        self.samples, self.say, self.estimate = samples, say, None
        self.progress = comfy.utils.ProgressBar(settings.steps)

    def foretell_memory(self, run: Run) -> None:
        """Say what a run will take, before its first step, and warn if there is not as much."""
        self.estimate = estimate(self.training, run.training)
        if self.estimate is None:
            return
        self.say(f"memory: {self.estimate}")
        self.log(f"this training takes {self.estimate}")
        if warning := shortage(self.training, self.estimate, self.memory_advice()):
            self.warn("memory", warning)

    def check_interrupt(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    def after_step(self, step: int) -> None:
        self.progress.update_absolute(step, None, self._preview(step))

    def show_step(self, step: StepDone) -> None:
        self._show(f"{step}, {step.time_left}")

    def show_report(self, text: str) -> None:
        self.log(text)
        self._show(text)

    def show_warning(self, text: str) -> None:
        self.log(text, logging.WARNING)
        self.say(text)

    def log(self, text: str, level: int = logging.INFO) -> None:
        logging.log(level, f"SaRA: {plain(text)}")

    def ended_early(self, kept: str, is_said: bool) -> None:
        self.log(f"training ended early. {kept}", logging.WARNING)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return is_out_of_memory(error)

    def memory_advice(self) -> str:
        return out_of_memory_advice(
            self.estimate, gradient_checkpointing=self.gradient_checkpointing, batch_size=self.settings.batch_size,
            grad_accumulation=self.settings.grad_accumulation, setting=self.words.setting,
        )  # fmt: skip

    def _show(self, text: str) -> None:
        self.say("\n".join([text, *self.warnings.values()]))

    def _preview(self, step: int) -> tuple | None:
        """What the progress bar shows of the pictures drawn after a step, if any are due and can be drawn."""
        if self.samples is None or not self.samples.is_due(step):
            return None
        pictures = []
        try:
            pictures = self.samples.draw()
        except comfy.model_management.InterruptProcessingException:  # an Exception in older hosts
            raise
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold what the next step needs the memory for
            cause = self.cause(error)
            self.warn("pictures", f"Training goes on without the pictures of step {step}. {cause}")
        self.training.reload()
        if not pictures:
            return None
        try:
            self.samples.save(step, pictures)
        except DeltaError as error:
            self.warn("pictures", f"The pictures of step {step} are shown, but not kept. {error}")
        row = side_by_side([drawn.picture for drawn in pictures])
        return "JPEG", row, max(row.size)
