"""Which noise levels of a model are trained, and how often each."""

from dataclasses import dataclass

import torch

from ..errors import TrainingError

DISTRIBUTIONS = ("uniform", "logit-normal")
# Ends of a range of σ, 0 where it has none. Wan 2.2's two experts change over at these.
AUTOMATIC = "automatic"
RANGES = {
    AUTOMATIC: (0.0, 0.0),
    "all": (0.0, 0.0),
    "Wan 2.2 T2V high noise": (0.875, 0.0),
    "Wan 2.2 T2V low noise": (0.0, 0.875),
    "Wan 2.2 I2V high noise": (0.9, 0.0),
    "Wan 2.2 I2V low noise": (0.0, 0.9),
}
# A network that says the clean picture, trained by the velocity (x − x0) / σ, has its error multiplied by 1 / σ²: below
# this almost clean pictures would be all that counts. (Li & He, "Back to Basics: Let Denoising Generative Models
# Denoise", 2025, train with the same floor.)
FLOOR_OF_X0 = 0.05


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


def noise_range(preset: str, least: float, most: float, floor: float = 0.0) -> tuple[float, float]:
    """Least and most σ of a training, 0 where there is no end: of one of RANGES, with `least` and `most` in place of
    its ends where they are not 0.

    floor: what "automatic" takes as least σ, as the model is
    """
    lower, upper = RANGES[preset]
    if preset == AUTOMATIC:
        lower = floor
    return least or lower, most or upper


def levels_within(sigmas: torch.Tensor, least: float, most: float) -> range:
    """The positions of the noise levels between two σ, both included; 0 is no end.

    sigmas: the model's, rising, floating [n]. Raises TrainingError if none lies there.
    """
    sigmas = sigmas.double().cpu()
    first = int((sigmas < least).sum())
    stop = int((sigmas <= most).sum()) if most else len(sigmas)
    if first >= stop:
        upwards = f"{least:g} to {most:g}" if most else f"{least:g} upwards"
        raise TrainingError(
            f"The model has no noise level from {upwards}: its levels go from {float(sigmas[0]):.3g} to "
            f"{float(sigmas[-1]):.3g}. Choose a noise range inside of that."
        )
    return range(first, stop)
