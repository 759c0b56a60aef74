"""One run of SaRA Train, from what the node was given to a delta: with snapshots, pictures, and a clear end however it
comes."""

import json
import logging
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict

import comfy.model_management
import comfy.utils
import torch

from ...sara_core.delta import SparseDelta
from ...sara_core.errors import DeltaError, SaRAError, TrainingError
from ...sara_core.low_rank import LowRankLoss
from ...sara_core.memory import out_of_memory_advice
from ...sara_core.noise_levels import NoiseLevels
from ...sara_core.optimizer import make_inner
from ...sara_core.optimizer_choice import optimizer_named
from ...sara_core.snapshot import RunSnapshots
from ...sara_core.training import Training, TrainingSettings
from . import folders
from .batches import DenoisingLoss
from .dataset import prepare_samples
from .denoiser import Denoiser
from .estimate import estimate, is_out_of_memory, shortage
from .family import FAMILY_METADATA, model_family
from .identity import identity_metadata
from .isolation import TrainingModel
from .pairing import TrainingData
from .run_settings import RunSettings, learning_rate
from .samples import Samples
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

        However the run ends before that, what was trained is kept as a delta and as a snapshot, and a TrainingError or
        DeltaError says where. The host's Cancel is raised as it came.
        """
        settings = self.settings
        logging.info(f"SaRA: {self.data.describe(settings.steps, settings.batch_size * settings.grad_accumulation)}")
        self._foretell_memory()
        progress = comfy.utils.ProgressBar(settings.steps)
        clock = StepClock(self.run.step, settings.steps)

        def on_step(step: int, loss: float):
            preview = None
            if self.samples is not None and self.samples.is_due(step):
                picture = self.samples.draw(step)
                preview = ("JPEG", picture, max(picture.size))
            progress.update_absolute(step, None, preview)
            self.say(f"step {step} of {settings.steps}, loss {loss:.4f}, {clock.remaining(step)}")
            if self.snapshot_every and step % self.snapshot_every == 0 and step < settings.steps:
                self._save_snapshot()

        try:
            self.run.run(on_step, comfy.model_management.throw_exception_if_processing_interrupted)
        except BaseException as error:  # the host's Cancel is no Exception
            traceback.clear_frames(error.__traceback__)  # they hold the step's activations, and saving needs memory
            kept = self._keep(resumable=not isinstance(error, TrainingError))
            if isinstance(error, SaRAError):
                raise type(error)(f"{error} {kept}") from error
            if is_out_of_memory(error):
                raise TrainingError(f"Memory ran out at step {self.run.step + 1}. {kept} {self._advice()}") from error
            raise
        self.snapshots.discard()
        self.say(self._report())
        return self._delta(), self.run.losses

    def _foretell_memory(self) -> None:
        self.estimate = estimate(self.training, self.run)
        if self.estimate is not None:
            self.say(f"memory: {self.estimate}")
            logging.info(f"SaRA: this training takes {self.estimate}")
            warning = shortage(self.training, self.estimate, self._advice())
            if warning:
                self.say(warning)
                logging.warning(f"SaRA: {warning}")

    def _advice(self) -> str:
        return out_of_memory_advice(
            self.estimate, gradient_checkpointing=self.gradient_checkpointing, batch_size=self.settings.batch_size,
            grad_accumulation=self.settings.grad_accumulation,
        )

    def _save_snapshot(self) -> None:
        try:
            self.snapshots.save(self.run.step, self.run.state(), asdict(self.settings))
        except DeltaError as error:  # a full disk is no reason to end a run that can still be finished
            logging.warning(f"SaRA: training goes on without a snapshot of step {self.run.step}. {error}")

    def _keep(self, resumable: bool) -> str:
        """Save what was trained before the run ended early; returns a sentence about it."""
        steps = self.run.step
        if steps == 0:
            return "No step was completed, so there is nothing to keep."
        try:
            path = folders.new_output_path("sara/stopped")
            self._delta().save(path)
            kept = f"What was trained in {steps} steps is in output/{folders.relative_to_output(path)}."
            if resumable:
                path = self.snapshots.save(steps, self.run.state(), asdict(self.settings))
                kept += f" To go on with it, choose {path.name} under resume."
        except DeltaError as error:
            kept = f"What was trained in {steps} steps could not all be saved: {error}"
        logging.warning(f"SaRA: training ended early. {kept}")
        return kept

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
        selection = self.training.selection
        selected = {**selection.rule, "theta": selection.theta, "elements": selection.count, "of": selection.candidates}
        trained = {**asdict(self.settings), "learning_rate": self.rate, "steps": self.run.step}
        trained["images"] = len(self.data.images)
        return self.training.store.delta({
            "sara.selection": json.dumps(selected),
            "sara.training": json.dumps(trained),
            "sara.base": self.training.store.base_fingerprint,
            **self.base,
            FAMILY_METADATA: model_family(self.training.patcher),
        })


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


def _loss_scaler(training: TrainingModel) -> torch.amp.GradScaler:
    """Gradients of an fp16 forward vanish unless the loss is scaled up."""
    half = training.patcher.model.get_dtype_inference() == torch.float16
    return torch.amp.GradScaler(training.device.type, init_scale=2.0**12, enabled=half)
