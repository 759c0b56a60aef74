"""Weights of a sample's loss by its noise level."""

import torch


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
