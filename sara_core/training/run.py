"""A run put together: model, settings and data become a loop that has all it needs, and a delta that says so."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch

from ..backward.store import Store
from ..data.denoising_loss import DenoisingLoss, Network, Sample
from ..data.draws import Draw
from ..data.held_out import HeldOut
from ..data.noise_levels import NoiseLevels
from ..delta import SparseDelta
from ..selection.select import Selection
from ..wording import counted
from .loop import Training, TrainingSettings
from .low_rank import LowRankLoss
from .optimizer import check_all_reached, learning_rate_for
from .record import RunSettings, metadata
from .words import Words

# Below this the paper's rule leaves a run of ordinary length without effect: θ is too large for it.
USELESS_LEARNING_RATE = 1e-6


def denoising_loss(
    settings: RunSettings,
    network: Network,
    samples: Sequence[Sample],
    class_samples: Sequence[Sample] = (),
    own_part: Callable[[list[Draw]], list[Draw]] = list,
    as_before: Callable[[], AbstractContextManager] | None = None,
) -> DenoisingLoss:
    """The losses of a run's batches, from the first one on. Raises what DenoisingLoss does."""
    return DenoisingLoss(
        network, samples, settings.batch_size, settings.seed, class_samples=class_samples,
        as_before=as_before, prior_weight=settings.prior_weight, caption_dropout=settings.caption_dropout,
        noise_levels=NoiseLevels(settings.noise_levels, settings.noise_level_mean, settings.noise_level_std),
        noise_range=(settings.noise_from, settings.noise_to), min_snr_gamma=settings.min_snr_gamma, own_part=own_part,
    )  # fmt: skip


class Run:
    """A run of a model that is ready for it; `training` is its loop.

    store, selection: Δ, attached to the model, and the elements that it belongs to
    optimizer: over `store.values`, of the settings' choice (optimizer_choice.chosen_optimizer)
    batches: as from `denoising_loss`; images: how many samples it draws from
    about_base: what the delta says of its base, with keys of delta.metadata
    named: the delta with the names that its file has, from the one that the store gives
    scaler, average, check_reached: as of loop.Training
    held_out: pictures that are not among those, whose loss is measured now and then

    learning_rate: the one that is trained with, before schedule and warmup
    """

    def __init__(
        self,
        settings: RunSettings,
        store: Store,
        selection: Selection,
        optimizer: torch.optim.Optimizer,
        batches: DenoisingLoss,
        *,
        images: int,
        about_base: Mapping[str, str],
        named: Callable[[SparseDelta], SparseDelta] = lambda delta: delta,
        scaler: torch.amp.GradScaler | None = None,
        average: Callable[[torch.Tensor], None] | None = None,
        check_reached: Callable[[Store], None] = check_all_reached,
        held_out: HeldOut | None = None,
    ):
        self.held_out = held_out
        self.settings, self.store, self.selection = settings, store, selection
        self.images, self.about_base, self.named = images, about_base, named
        self.learning_rate = settings.learning_rate or learning_rate_for(selection.theta)
        self.training = Training(
            store, optimizer, batches, self._loop_settings(), self._low_rank_loss(), scaler, average, check_reached
        )

    def _loop_settings(self) -> TrainingSettings:
        settings = self.settings
        return TrainingSettings(
            settings.steps, settings.grad_accumulation, settings.max_grad_norm, settings.schedule,
            settings.warmup_steps, settings.adjust_after_steps(), self.selection.theta,
        )  # fmt: skip

    def _low_rank_loss(self) -> LowRankLoss | None:
        settings = self.settings
        if not settings.low_rank_weight:
            return None
        return LowRankLoss(self.store, settings.low_rank_weight, settings.seed, settings.samples_per_step)

    def delta(self) -> SparseDelta:
        """What was trained so far, with its metadata."""
        said = metadata(
            self.settings, self.selection, self.learning_rate, self.training.step, self.training.plan, self.images,
            self.store.base_fingerprint, self.held_out,
        )  # fmt: skip
        return self.named(self.store.delta({**said, **self.about_base}))

    def warning(self, words: Words = Words()) -> str | None:
        """A sentence, if the paper's rule gives a learning rate that learns nothing."""
        if self.settings.learning_rate or self.learning_rate >= USELESS_LEARNING_RATE:
            return None
        return (
            f"the paper's rule gives a learning rate of {self.learning_rate:.1e} for weights up to "
            f"{self.selection.theta:.3g}, too low to learn anything. Lower the density, or set "
            f"{words.setting('learning_rate')} (1e-4 to 1e-3)."
        )

    def report(self) -> str:
        """What the run did, in one line, once it is over."""
        selection, training = self.selection, self.training
        steps = f"{training.step} steps"
        if training.step < self.settings.steps:
            steps = f"{training.step} of {self.settings.steps} steps"
        parts = [f"{selection.count:,} weights trained in {steps}, learning rate {self.learning_rate:.2g}"]
        for step, adjustment in training.adjustments:
            parts.append(f"{adjustment.ineffective / adjustment.trained:.1%} were below θ after step {step}")
            if not adjustment.moments_kept:
                parts.append("the 8-bit optimizer's moments started anew there")
        if self.held_out is not None and self.held_out.losses:
            (_, first), (_, last) = self.held_out.losses[0], self.held_out.losses[-1]
            parts.append(f"loss on {counted(self.held_out.images, 'image')} held out {first:.4f}, then {last:.4f}")
        if selection.theta is not None:
            still = self.store.ineffective(selection.theta) / selection.count
            parts.append(f"{still:.1%} are below θ = {selection.theta:.3g} at the end")
        elif self.settings.adjust_at:
            parts.append("adjustment is off: this selection rule has no θ")
        if selection.not_finite:
            parts.append(f"{selection.not_finite:,} weights of the base are NaN or infinite and were left out")
        if skipped := sum(map(math.isnan, training.losses)):
            parts.append(f"{skipped} steps were skipped because they gave no finite loss or gradient")
        return "; ".join(parts)
