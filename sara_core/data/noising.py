"""How a model's training adds noise to a clean latent, and what its network then predicts.

Each has `levels`, the number of its noise levels, and takes their positions in rising order, int64 [batch]; and
`prediction`, for loss_weighting.py.
"""

import torch


class DiffusionNoising:
    """x_t = √ᾱ_t · x0 + √(1 − ᾱ_t) · noise; the network predicts the noise, or the velocity
    √ᾱ_t · noise − √(1 − ᾱ_t) · x0 (Salimans & Ho, "Progressive Distillation for Fast Sampling", 2022).

    signal: ᾱ_t at each level, falling, fp32 [levels]; prediction: "eps" for the noise, "v" for the velocity
    """

    def __init__(self, signal: torch.Tensor, prediction: str):
        self.signal, self.prediction = signal, prediction
        self.levels = len(signal)

    def noisy(self, clean: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """x_t of these fp32 latents [batch, channels, height, width]."""
        of_signal, of_noise = self._shares(level)
        return of_signal * clean + of_noise * noise

    def target(self, clean: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """What the network should predict, of the latents' shape."""
        if self.prediction != "v":
            return noise
        of_signal, of_noise = self._shares(level)
        return of_signal * noise - of_noise * clean

    def noise_to_signal(self, level: torch.Tensor) -> torch.Tensor:
        """σ of x0 + σ · noise, which x_t is a multiple of: √((1 − ᾱ_t) / ᾱ_t), fp32 [batch]."""
        share = self.signal.to(level.device)[level]
        return ((1 - share) / share).sqrt()

    def timesteps(self, level: torch.Tensor) -> torch.Tensor:
        """t as the network is told it, [batch]."""
        return level

    def _shares(self, level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """√ᾱ_t and √(1 − ᾱ_t), [batch, 1, 1, 1]."""
        share = self.signal.to(level.device)[level].view(-1, 1, 1, 1)
        return share.sqrt(), (1 - share).sqrt()


class FlowNoising:
    """x_σ = (1 − σ) · x0 + σ · noise; the network predicts noise − x0 (Esser et al., "Scaling Rectified Flow
    Transformers for High-Resolution Image Synthesis", 2024).

    sigmas: the noise levels, rising from above 0 to 1, with the model's shift: fp32 [levels]
    """

    TIMESTEPS = 1000
    prediction = None

    def __init__(self, sigmas: torch.Tensor):
        self.sigmas = sigmas
        self.levels = len(sigmas)

    def noisy(self, clean: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """x_σ of these fp32 latents [batch, channels, height, width]."""
        sigma = self._sigma(level).view(-1, 1, 1, 1)
        return (1 - sigma) * clean + sigma * noise

    def target(self, clean: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """What the network should predict, of the latents' shape."""
        return noise - clean

    def timesteps(self, level: torch.Tensor) -> torch.Tensor:
        """t = 1000 · σ, fp32 [batch]."""
        return self.TIMESTEPS * self._sigma(level)

    def _sigma(self, level: torch.Tensor) -> torch.Tensor:
        return self.sigmas.to(level.device)[level]
