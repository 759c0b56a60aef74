"""One run of SaRA Train, from what the node was given to a delta: with snapshots, pictures, and a clear end however it
comes."""

import contextlib
import logging
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch

from ....sara_core.data.noise_levels import NoiseLevels
from ....sara_core.delta import SparseDelta
from ....sara_core.delta import metadata as keys
from ....sara_core.errors import DeltaError, SaRAError, TrainingError
from ....sara_core.memory.estimate import out_of_memory_advice
from ....sara_core.training.loop import Training, TrainingSettings
from ....sara_core.training.low_rank import LowRankLoss
from ....sara_core.training.optimizer import make_inner
from ....sara_core.training.optimizer_choice import optimizer_named
from ....sara_core.training.record import RunSettings, metadata
from ....sara_core.training.snapshot import RunSnapshots
from .. import folders, unsaved
from ..family import model_family
from ..identity import identity_metadata
from .batches import DenoisingLoss
from .dataset import prepare_samples
from .denoiser import Denoiser
from .estimate import estimate, is_out_of_memory, shortage
from .isolation import TrainingModel
from .pairing import TrainingData
from .run_settings import learning_rate
from .samples import Samples, side_by_side
from .unused import check_used_weights_reached


def denoising_loss(patcher, data: TrainingData, settings: RunSettings) -> DenoisingLoss:
    """The losses of a run's batches, from the first one on; the model must be loaded."""
    samples = prepare_samples(patcher, data.images, settings.seed, data.unconditional)
    class_samples = ()
    if data.class_images:
        class_samples = prepare_samples(patcher, data.class_images, settings.seed, data.unconditional)
    return DenoisingLoss(
        Denoiser(patcher), samples, settings.batch_size, settings.seed, class_samples=class_samples,
        prior_weight=settings.prior_weight, caption_dropout=settings.caption_dropout,
        noise_levels=NoiseLevels(settings.noise_levels, settings.noise_level_mean, settings.noise_level_std),
        min_snr_gamma=settings.min_snr_gamma,
    )


def first_loss(patcher, data: TrainingData, settings: RunSettings) -> Callable[[], torch.Tensor]:
    """A function that computes the loss of a run's first batch, the same each time."""
    batches = denoising_loss(patcher, data, settings)
    beginning = batches.state()

    def loss():
        batches.load_state(beginning)
        return batches()

    return loss


class TrainingSession:
    """Trains a prepared model once.

    training: the model inside `training_model`; data: its images and captions
    gradient_checkpointing: whether it is on, for the advice that a run gets which needs too much memory
    snapshots: where they go, one every `snapshot_every` steps (0 = only when the run is stopped)
    samples: draws pictures in between, or None
    say: shows a line of text on the node
    """

    def __init__(
        self,
        training: TrainingModel,
        data: TrainingData,
        settings: RunSettings,
        gradient_checkpointing: bool,
        snapshots: RunSnapshots,
        snapshot_every: int,
        samples: Samples | None,
        say: Callable[[str], None],
    ):
        self.training, self.data, self.settings = training, data, settings
        self.gradient_checkpointing, self.estimate = gradient_checkpointing, None
        self.snapshots, self.snapshot_every, self.samples, self.say = snapshots, snapshot_every, samples, say
        self.warnings: dict[str, str] = {}
        store, theta = training.store, training.selection.theta
        self.rate = learning_rate(settings, theta)
        self.base = identity_metadata(training.patcher)  # now, as long as Δ is 0
        kind, options = optimizer_named(settings.optimizer)
        options = {**options, "weight_decay": settings.weight_decay}
        low_rank = None
        if settings.low_rank_weight:
            per_step = settings.batch_size * settings.grad_accumulation
            low_rank = LowRankLoss(store, settings.low_rank_weight, settings.seed, per_step)
        self.run = Training(
            store, make_inner(kind, store.values, theta, self.rate, options),
            denoising_loss(training.patcher, data, settings),
            TrainingSettings(
                settings.steps, settings.grad_accumulation, settings.max_grad_norm, settings.schedule,
                settings.warmup_steps, settings.adjust_after_steps(), theta,
            ),
            low_rank, _loss_scaler(training),
            check_reached=lambda store: check_used_weights_reached(
                store, lambda: first_loss(training.patcher, data, settings)
            ),
        )

    def resume(self, state: dict) -> None:
        """Go on where a snapshot was taken. Raises DeltaError if its base or its trained elements are others."""
        self.run.load_state(state)

    def execute(self) -> tuple[SparseDelta, list[float]]:
        """Train to the end; returns the delta and the loss of every step.

        The delta is on the disk, too, until it has been saved: see host/unsaved.py. However the run ends before that,
        what was trained is kept as a snapshot and as a delta, and a TrainingError or DeltaError says where. The host's
        Cancel is raised as it came. A picture or snapshot that cannot be made is no reason to end a run.
        """
        settings = self.settings
        logging.info(f"SaRA: {self.data.describe(settings.steps, settings.batch_size * settings.grad_accumulation)}")
        self._foretell_memory()
        progress = comfy.utils.ProgressBar(settings.steps)
        clock = StepClock(self.run.step, settings.steps)

        def on_step(step: int, loss: float):
            progress.update_absolute(step, None, self._preview(step))
            if self.snapshots.is_due(step, settings.steps, self.snapshot_every):
                self._save_snapshot()
            self._show(f"step {step} of {settings.steps}, loss {loss:.4f}, {clock.remaining(step)}")

        try:
            self.run.run(on_step, comfy.model_management.throw_exception_if_processing_interrupted)
            delta = self._delta()
        except BaseException as error:  # the host's Cancel is no Exception
            traceback.clear_frames(error.__traceback__)  # they hold the step's activations, and saving needs memory
            kept = self._keep(resumable=not isinstance(error, TrainingError))
            if isinstance(error, SaRAError):
                raise type(error)(f"{error} {kept}") from error
            if is_out_of_memory(error):
                step = min(self.run.step + 1, settings.steps)
                raise TrainingError(f"Memory ran out at step {step}. {kept} {self._advice()}") from error
            raise
        self._keep_finished(delta)
        self._show(self._report())
        return delta, self.run.losses

    def _foretell_memory(self) -> None:
        self.estimate = estimate(self.training, self.run)
        if self.estimate is not None:
            self.say(f"memory: {self.estimate}")
            logging.info(f"SaRA: this training takes {self.estimate}")
            warning = shortage(self.training, self.estimate, self._advice())
            if warning:
                self._warn("memory", warning)

    def _advice(self) -> str:
        return out_of_memory_advice(
            self.estimate, gradient_checkpointing=self.gradient_checkpointing, batch_size=self.settings.batch_size,
            grad_accumulation=self.settings.grad_accumulation,
        )

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
            self._warn("pictures", f"Training goes on without the pictures of step {step}. {_cause(error)}")
        self.training.reload()
        if not pictures:
            return None
        try:
            self.samples.save(step, pictures)
        except DeltaError as error:
            self._warn("pictures", f"The pictures of step {step} are shown, but not kept. {error}")
        row = side_by_side(pictures)
        return "JPEG", row, max(row.size)

    def _save_snapshot(self) -> None:
        step = self.run.step
        try:
            self._snapshot()
        except Exception as error:  # a full disk is no reason to end a run that can still be finished
            self._warn("snapshots", f"Training goes on without a snapshot of step {step}. {_cause(error)}")

    def _snapshot(self) -> Path:
        return self.snapshots.save(self.run.step, self.run.state(), asdict(self.settings))

    def _keep_finished(self, delta: SparseDelta) -> None:
        """On the disk, until somebody saves it."""
        try:
            path = unsaved.keep_copy(delta, self.snapshots)
            logging.info(f"SaRA: until it is saved, the delta is in output/{folders.relative_to_output(path)}.")
            return
        except Exception as error:
            cause = _cause(error)
        with contextlib.suppress(Exception):  # where one folder cannot be written, the other perhaps can
            self._snapshot()
        unsaved.keep_snapshots(delta, self.snapshots)
        left = self.snapshots.existing()
        resume = f"Should that fail, choose {left[-1].name} under resume." if left else "There is no snapshot of it."
        self._warn("finished", f"The finished delta could not be kept on the disk: save it now. {resume} {cause}")

    def _keep(self, resumable: bool) -> str:
        """Save what was trained before the run ended early, the snapshot and the delta each on its own; returns
        sentences about both."""
        steps = self.run.step
        if steps == 0:
            return "No step was completed, so there is nothing to keep."
        resume, kept = "", ""
        if resumable:
            try:
                resume = f"To go on with it, choose {self._snapshot().name} under resume."
            except Exception as error:
                resume = f"There is no snapshot of it. {_cause(error)}"
        try:
            paths = folders.own_output_paths(folders.FOLDER, f"stopped_{self.snapshots.run}")
            path, _ = folders.save_new(paths, lambda path: self._delta().save(path, overwrite=False))
            kept = f"What was trained in {steps} steps is in output/{folders.relative_to_output(path)}."
        except Exception as error:
            kept = f"What was trained in {steps} steps could not be saved as a delta. {_cause(error)}"
        kept = f"{kept} {resume}".rstrip()
        logging.warning(f"SaRA: training ended early. {kept}")
        return kept

    def _warn(self, kind: str, text: str) -> None:
        """Log a warning; on the node the last of each kind stays, below whatever else it shows."""
        logging.warning(f"SaRA: {text}")
        self.warnings[kind] = text
        self.say(text)

    def _show(self, text: str) -> None:
        self.say("\n".join([text, *self.warnings.values()]))

    def _report(self) -> str:
        selection, run = self.training.selection, self.run
        parts = [f"{selection.count:,} weights trained in {run.step} steps, learning rate {self.rate:.2g}"]
        for step, adjustment in run.adjustments:
            parts.append(f"{adjustment.ineffective / adjustment.trained:.1%} were below θ after step {step}")
            if not adjustment.moments_kept:
                parts.append("the 8-bit optimizer's moments started anew there")
        if selection.theta is not None:
            still = self.training.store.ineffective(selection.theta) / selection.count
            parts.append(f"{still:.1%} are below θ = {selection.theta:.3g} at the end")
        elif self.settings.adjust_at:
            parts.append("adjustment is off: this selection rule has no θ")
        skipped = sum(map(math.isnan, run.losses))
        if skipped:
            parts.append(f"{skipped} steps were skipped because they gave no finite loss or gradient")
        text = "; ".join(parts)
        logging.info(f"SaRA: {text}")
        return text

    def _delta(self) -> SparseDelta:
        said = metadata(
            self.settings, self.training.selection, self.rate, self.run.step, len(self.data.images),
            self.training.store.base_fingerprint,
        )
        return self.training.store.delta({**said, **self.base, keys.FAMILY: model_family(self.training.patcher)})


class StepClock:
    """How long the rest of a run will take, judged by the steps of this process so far."""

    def __init__(self, first_step: int, steps: int):
        self.first_step, self.steps, self.start = first_step, steps, time.monotonic()

    def remaining(self, step: int) -> str:
        """"1:02:03 left", or "0:09 left"."""
        per_step = (time.monotonic() - self.start) / max(1, step - self.first_step)
        seconds = round(per_step * (self.steps - step))
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"


def _cause(error: Exception) -> str:
    """What went wrong, for people."""
    if is_out_of_memory(error):
        return "Memory ran out."
    return str(error) if isinstance(error, SaRAError) else f"{type(error).__name__}: {error}"


def _loss_scaler(training: TrainingModel) -> torch.amp.GradScaler:
    """Gradients of an fp16 forward vanish unless the loss is scaled up."""
    half = training.patcher.model.get_dtype_inference() == torch.float16
    return torch.amp.GradScaler(training.device.type, init_scale=2.0**12, enabled=half)
