"""A pipeline's UNet or transformer as the losses call it: what was drawn for a batch → what the network says of it."""

from collections.abc import Sequence

import torch

from ..data.draws import Draw
from ..data.loss_weighting import min_snr_weight, without_snr
from ..data.noising import DiffusionNoising, FlowNoising
from ..training.words import Words
from .families import PipelineFamily


class DiffusersNetwork:
    """A data.denoising_loss.Network, of samples whose conditions are families.Conditions.

    model: the network, called by its family with inputs in `dtype` on `device`
    """

    def __init__(
        self, model: torch.nn.Module, family: PipelineFamily, noising: DiffusionNoising | FlowNoising,
        device: torch.device, dtype: torch.dtype, words: Words = Words(),
    ):  # fmt: skip
        self.model, self.family, self.noising = model, family, noising
        self.device, self.dtype, self.words = device, dtype, words
        self.levels = noising.levels

    @property
    def sigmas(self) -> torch.Tensor:
        """Noise over signal at each level, of a flow σ itself, rising: fp32 [levels]."""
        if self.noising.prediction is None:
            return self.noising.sigmas
        return self.noising.noise_to_signal(torch.arange(self.levels))

    def losses(self, draws: Sequence[Draw], targets: Sequence[torch.Tensor | None] = ()) -> torch.Tensor:
        predicted, target = self._predicted_and_target(draws)
        for number, other in enumerate(targets):
            if other is not None:
                target[number] = other
        return (predicted - target).square().flatten(1).mean(1)

    @torch.no_grad()
    def predictions(self, draws: Sequence[Draw]) -> list[torch.Tensor]:
        return list(self._predicted_and_target(draws)[0])

    def mean_loss(self, draws: Sequence[Draw]) -> torch.Tensor:
        return torch.nn.functional.mse_loss(*self._predicted_and_target(draws))

    def min_snr_weights(self, levels: Sequence[int], gamma: float) -> torch.Tensor:
        if self.noising.prediction is None:
            raise without_snr(self.words.model, self.words.setting)
        sigmas = self.noising.noise_to_signal(torch.tensor(levels))
        return min_snr_weight(sigmas, gamma, self.noising.prediction).to(self.device)

    def _predicted_and_target(self, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
        """fp32 each, of the latents' shape."""
        samples = [draw.sample for draw in draws]
        clean = torch.stack([sample.latent for sample in samples]).to(self.device)
        noise = torch.stack([draw.noise for draw in draws]).to(self.device)
        level = torch.tensor([draw.level for draw in draws], device=self.device)
        conditions = {
            name: self._as_input(torch.stack([sample.conditions[name] for sample in samples]))
            for name in samples[0].conditions
        }
        noisy = self._as_input(self.noising.noisy(clean, noise, level))
        predicted = self.family.predict(self.model, noisy, self.noising.timesteps(level), conditions)
        return predicted.float(), self.noising.target(clean, noise, level)

    def _as_input(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
