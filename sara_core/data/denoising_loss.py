"""The loss of the next batch, put together from what is drawn for it; how a model is called is the network's affair."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from ..errors import TrainingError
from ..files.saved_state import fields
from .draws import Draw, Draws
from .noise_levels import NoiseLevels, levels_within


@dataclass(frozen=True)
class Sample:
    """latent: fp32 [*size], scaled as the model sees it; conditions: what the network is told of the image, in a form
    that is the network's own; unconditional: the same under the empty caption, where captions are dropped"""

    latent: torch.Tensor
    conditions: Mapping
    unconditional: Mapping | None = None

    def without_caption(self) -> "Sample":
        """The sample under the empty caption."""
        return replace(self, conditions=self.unconditional, unconditional=None)


class Network(Protocol):
    """A model on its device, with its noise. levels: how many noise levels it has; sigmas: noise over signal at each,
    for flow models σ itself, rising, floating [levels], which only a noise range asks for"""

    levels: int
    sigmas: torch.Tensor

    def losses(self, draws: Sequence[Draw], targets: Sequence[torch.Tensor | None] = ()) -> torch.Tensor:
        """Mean squared error of what the network says of each draw's noisy sample: fp32 [len(draws)], with graph.

        targets: for each draw what `predictions` gave, if that is what the network is to say of it; else None. By
            default None for all
        """

    def predictions(self, draws: Sequence[Draw]) -> list[torch.Tensor]:
        """What the network says now of each draw's noisy sample, in a form of its own, without graph."""

    def mean_loss(self, draws: Sequence[Draw]) -> torch.Tensor:
        """Their mean, up to its last bits: fp32 scalar, with graph."""

    def min_snr_weights(self, levels: Sequence[int], gamma: float) -> torch.Tensor:
        """Min-SNR-γ weights (loss_weighting.py) at these noise levels: fp32 [len(levels)], where the losses are.

        Raises UnsupportedModelError for a network that has no signal-to-noise ratio in that sense.
        """


# With it a prior_weight of 1 is the best of those that were tried: docs/claims.md.
KEPT_AS_BEFORE = 0.1


class DenoisingLoss:
    """Losses of one batch after the other, each of `batch_size` samples and as many class samples, if there are any.

    class_samples: images of what the subject is one of, which keep the model from forgetting the others:
        loss = mean over the samples + prior_weight · mean over the class samples (Ruiz et al., "DreamBooth", 2023)
    as_before: makes a context in which the network computes as before the training. With it the class samples are any
        images under captions that are to go on meaning what they did, and what the network is to say of them is what
        it says in that context (as in learning without forgetting, Li and Hoiem, arXiv 1606.09282). Their loss then
        counts KEPT_AS_BEFORE · prior_weight times.
    noise_levels: how often each noise level is drawn; noise_range: the least and the most σ of those, 0 = no end
    caption_dropout: part of the samples, 0 … 1, that are trained without their caption; they need `unconditional`
    min_snr_gamma: γ of min-SNR loss weighting, 0 = every noise level weighs the same
    own_part: of what is drawn for all processes together, what this one computes. Each draws the whole batch from the
        same seed, so that the losses' mean over the processes does not depend on how many share it.

    Raises UnsupportedModelError if min-SNR weighting is asked for and means nothing to the network, TrainingError if no
    noise level lies in the range.
    """

    def __init__(
        self,
        network: Network,
        samples: Sequence[Sample],
        batch_size: int,
        seed: int,
        *,
        class_samples: Sequence[Sample] = (),
        as_before: Callable[[], AbstractContextManager] | None = None,
        prior_weight: float = 1.0,
        caption_dropout: float = 0.0,
        noise_levels: NoiseLevels = NoiseLevels(),
        noise_range: tuple[float, float] = (0.0, 0.0),
        min_snr_gamma: float = 0.0,
        own_part: Callable[[list[Draw]], list[Draw]] = list,
    ):
        self.network, self.own_part, self.as_before = network, own_part, as_before
        self.prior_weight = prior_weight if as_before is None else KEPT_AS_BEFORE * prior_weight
        self.min_snr_gamma = min_snr_gamma
        if min_snr_gamma:
            network.min_snr_weights([0], min_snr_gamma)
        levels = levels_within(network.sigmas, *noise_range) if any(noise_range) else range(network.levels)
        options = (levels, noise_levels, caption_dropout)
        self.draws = Draws(samples, batch_size, seed, *options)
        self.class_draws = Draws(class_samples, batch_size, _another(seed), *options) if class_samples else None

    def __call__(self) -> torch.Tensor:
        """Loss of the next batch, or of this process's part of it: fp32 scalar with graph."""
        batch = self.own_part(self.draws.next_batch())
        class_batch = self.own_part(self.class_draws.next_batch()) if self.class_draws else []
        if not class_batch and not self.min_snr_gamma:
            return self.network.mean_loss(batch)
        losses = self._weighted_losses(batch, class_batch)
        loss = losses[: len(batch)].mean()
        return loss + self.prior_weight * losses[len(batch) :].mean() if class_batch else loss

    def _weighted_losses(self, batch: list[Draw], class_batch: list[Draw]) -> torch.Tensor:
        draws = batch + class_batch
        if class_batch and self.as_before is not None:
            with self.as_before():
                before = self.network.predictions(class_batch)
            losses = self.network.losses(draws, [*[None] * len(batch), *before])
        else:
            losses = self.network.losses(draws)
        if self.min_snr_gamma:
            losses = losses * self.network.min_snr_weights([draw.level for draw in draws], self.min_snr_gamma)
        return losses

    def state(self) -> dict:
        """What the coming batches depend on (Draws.state), to be taken between two batches."""
        return {
            "images": self.draws.state(),
            "class_images": self.class_draws.state() if self.class_draws else None,
        }

    def check_state(self, state: dict) -> None:
        """Raises DeltaError for a damaged state, TrainingError for one of other images."""
        fields(state, "the order of its images", ("images", "class_images"))
        if (state["class_images"] is None) != (self.class_draws is None):
            had, now = ("no class images", "some") if self.class_draws else ("class images", "none")
            raise TrainingError(
                f"The training to be resumed had {had}, now there are {now}: give it what it had then, or start a new "
                "training."
            )
        self.draws.check_state(state["images"])
        if self.class_draws:
            self.class_draws.check_state(state["class_images"])

    def load_state(self, state: dict) -> None:
        """Go on where `state` was taken, with the same samples and options. Raises what `check_state` raises."""
        self.check_state(state)
        self.draws.load_state(state["images"])
        if self.class_draws:
            self.class_draws.load_state(state["class_images"])


def repeated(batches: DenoisingLoss) -> Callable[[], torch.Tensor]:
    """A function that computes the loss of the coming batch, the same each time."""
    beginning = batches.state()

    def loss():
        batches.load_state(beginning)
        return batches()

    return loss


def largest_batch(batches: DenoisingLoss) -> list[Sample]:
    """The samples of a batch that no other takes more memory than."""
    return [
        sample
        for draws in (batches.draws, batches.class_draws) if draws is not None
        for sample in itertools.islice(itertools.cycle(_by_size(draws)), draws.epochs.batch_size)
    ]  # fmt: skip


def _by_size(draws: Draws) -> list[Sample]:
    return sorted(draws.samples, key=lambda sample: sample.latent.numel(), reverse=True)


def _another(seed: int) -> int:
    """A second seed, so that the class images do not change what is drawn for the others."""
    return int(torch.randint(2**63 - 1, (1,), generator=torch.Generator().manual_seed(seed)))
