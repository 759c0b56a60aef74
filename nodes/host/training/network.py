"""A loaded MODEL as sara_core's losses call it: what was drawn for a batch → the loss of each sample."""

from collections.abc import Sequence

import torch

from ....sara_core.data.denoising_loss import Sample
from ....sara_core.data.draws import Draw
from .dataset import HostSample
from .denoiser import Denoiser
from .prediction import min_snr_weights


class HostNetwork:
    """A sara_core.data.denoising_loss.Network, of samples that are HostSamples."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser

    @property
    def levels(self) -> int:
        return len(self.denoiser.sigmas)

    @property
    def sigmas(self) -> torch.Tensor:
        return self.denoiser.sigmas

    def losses(self, draws: Sequence[Draw], targets: Sequence[torch.Tensor | None] = ()) -> torch.Tensor:
        return self.denoiser.losses(*self._drawn(draws), targets)

    @torch.no_grad()
    def predictions(self, draws: Sequence[Draw]) -> list[torch.Tensor]:
        return self.denoiser.predictions(*self._drawn(draws))

    def _drawn(self, draws: Sequence[Draw]) -> tuple[list[HostSample], list[torch.Tensor], list[torch.Tensor]]:
        samples = self.given([draw.sample for draw in draws])
        sigmas = [self.denoiser.sigmas[draw.level].clone() for draw in draws]
        return samples, sigmas, [draw.noise for draw in draws]

    def given(self, samples: Sequence[Sample]) -> list[HostSample]:
        """What the model is given for these samples, on its device."""
        return [sample.on(self.denoiser.patcher.load_device) for sample in samples]

    def mean_loss(self, draws: Sequence[Draw]) -> torch.Tensor:
        return self.losses(draws).mean()

    def min_snr_weights(self, levels: Sequence[int], gamma: float) -> torch.Tensor:
        sigmas = self.denoiser.sigmas[torch.tensor(levels)]
        weights = min_snr_weights(self.denoiser.patcher.model.model_sampling, sigmas, gamma)
        return weights.to(self.denoiser.patcher.load_device)
