"""Weights of a sample's loss by its noise level."""

from collections.abc import Callable

import torch

from ..errors import UnsupportedModelError


def min_snr_weight(sigma: torch.Tensor, gamma: float, prediction: str, sigma_data: float = 1.0) -> torch.Tensor:
    """Min-SNR-γ weight of the mean squared error of what a network predicts; fp32, of the shape of `sigma`.

    sigma: noise levels of x = x0 + σ · noise, above 0
    gamma: γ, above 0; the smaller, the less weight levels with little noise get; 5 in the paper
    prediction: "eps" (noise) or "v" (velocity); a flow model has neither
    sigma_data: standard deviation of x0 that the model's preconditioning assumes

    With SNR = (sigma_data / σ)² it is min(SNR, γ) / SNR for eps and min(SNR, γ) / (SNR + 1) for v, which both put
    min(SNR, γ) on the error of x0 (Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", 2023).
    """
    snr = (sigma_data / sigma.float()) ** 2
    return snr.clamp(max=gamma) / {"eps": snr, "v": snr + 1}[prediction]


def without_snr(model: str, setting: Callable[[str], str]) -> UnsupportedModelError:
    """The error for a model that has no signal-to-noise ratio in that sense.

    model: what to call it, as "this model"; setting: the name of a setting → what a person sets
    """
    return UnsupportedModelError(
        f"Min-SNR weighting is for models that predict noise or velocity, as SD1.5, SD2.1 and SDXL do, and {model} "
        f"does not: set {setting('min_snr_gamma')} to 0. For a flow model (SD3, Flux, Wan …), "
        f"{setting('noise_levels')} = logit-normal serves the same purpose."
    )
