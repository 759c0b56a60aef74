"""The loss of the next batch, put together from what is drawn for it."""

import torch

from ....sara_core.data.draws import Draw, Draws
from ....sara_core.data.noise_levels import NoiseLevels
from ....sara_core.errors import TrainingError
from ....sara_core.files.saved_state import fields
from .dataset import Sample
from .denoiser import Denoiser
from .prediction import min_snr_weights, snr_prediction


class DenoisingLoss:
    """Losses of one batch after the other, each of `batch_size` samples and as many class samples, if there are any.

    class_samples: images of what the subject is one of, which keep the model from forgetting the others:
        loss = mean over the samples + prior_weight · mean over the class samples (Ruiz et al., "DreamBooth", 2023)
    caption_dropout: part of the samples, 0 … 1, that are trained without their caption; they need `unconditional`
    noise_levels: how often each noise level is drawn
    min_snr_gamma: γ of min-SNR loss weighting, 0 = every noise level weighs the same

    Raises UnsupportedModelError if min-SNR weighting is asked for and the model is neither an eps nor a v model.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        samples: list[Sample],
        batch_size: int,
        seed: int,
        *,
        class_samples: list[Sample] = (),
        prior_weight: float = 1.0,
        caption_dropout: float = 0.0,
        noise_levels: NoiseLevels = NoiseLevels(),
        min_snr_gamma: float = 0.0,
    ):
        self.denoiser, self.prior_weight, self.min_snr_gamma = denoiser, prior_weight, min_snr_gamma
        if min_snr_gamma:
            snr_prediction(denoiser.patcher.model.model_sampling)
        options = (len(denoiser.sigmas), noise_levels, caption_dropout)
        self.draws = Draws(samples, batch_size, seed, *options)
        self.class_draws = Draws(class_samples, batch_size, _another(seed), *options) if class_samples else None

    def __call__(self) -> torch.Tensor:
        """Loss of the next batch, fp32 scalar with graph."""
        batch = self.draws.next_batch()
        class_batch = self.class_draws.next_batch() if self.class_draws else []
        losses = self._losses(batch + class_batch)
        loss = losses[:len(batch)].mean()
        return loss + self.prior_weight * losses[len(batch):].mean() if class_batch else loss

    def _losses(self, draws: list[Draw]) -> torch.Tensor:
        device, sigmas = self.denoiser.patcher.load_device, self.denoiser.sigmas
        chosen = [sigmas[draw.level].clone() for draw in draws]
        losses = self.denoiser.losses([draw.sample.on(device) for draw in draws], chosen, [d.noise for d in draws])
        if self.min_snr_gamma:
            model_sampling = self.denoiser.patcher.model.model_sampling
            losses = losses * min_snr_weights(model_sampling, torch.stack(chosen), self.min_snr_gamma).to(losses)
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
            had, now = ("none", "some") if self.class_draws else ("class images", "none")
            raise TrainingError(
                f"The training to be resumed had {had} in class_latents, now there are {now}: connect what was "
                "connected then, or start a new training."
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


def _another(seed: int) -> int:
    """A second seed, so that the class images do not change what is drawn for the others."""
    return int(torch.randint(2**63 - 1, (1,), generator=torch.Generator().manual_seed(seed)))
