"""How often each noise level of a model is trained."""

from dataclasses import dataclass

import torch

DISTRIBUTIONS = ("uniform", "logit-normal")


@dataclass(frozen=True)
class NoiseLevels:
    """A distribution over the positions in a model's table of noise levels, which rise and include its shift.

    uniform: every level equally often; mean and std are ignored
    logit-normal: position / number of levels = sigmoid(mean + std · N(0, 1)), which prefers the middle (Esser et al.,
        "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024, eq. 19). A mean above 0
        prefers much noise, one below 0 little; the smaller std, the stronger the preference.
    """

    distribution: str = "uniform"
    mean: float = 0.0
    std: float = 1.0

    def draw(self, levels: int, generator: torch.Generator) -> int:
        """A position in 0 … levels − 1, from a generator on the CPU."""
        if self.distribution == "uniform":
            return int(torch.randint(levels, (1,), generator=generator))
        normal = torch.randn(1, generator=generator, dtype=torch.float64)
        fraction = torch.sigmoid(self.mean + self.std * normal).item()
        return min(int(fraction * levels), levels - 1)  # far out in the tail the sigmoid rounds to 1
