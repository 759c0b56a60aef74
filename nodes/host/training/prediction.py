"""What a model's network predicts, by the equation with which the host turns it into the picture."""

import comfy.model_sampling
import torch

from ....sara_core.data.loss_weighting import min_snr_weight, without_snr
from ..words import WORDS

# A class derived from these with an equation of its own (LCM, x0) predicts something else.
_PREDICTION_OF = {
    getattr(comfy.model_sampling, name).calculate_denoised: prediction
    for name, prediction in {"EPS": "eps", "V_PREDICTION": "v", "V_PREDICTION_DDPM": "v", "EDM": "v"}.items()
    if hasattr(comfy.model_sampling, name)  # V_PREDICTION_DDPM came with CogVideoX
}


def snr_prediction(model_sampling) -> str:
    """"eps" or "v", for sara_core.data.loss_weighting. UnsupportedModelError for models without a signal-to-noise ratio
    in that sense."""
    prediction = _PREDICTION_OF.get(type(model_sampling).calculate_denoised)
    if prediction is None:
        raise without_snr(WORDS.model, WORDS.setting)
    return prediction


def min_snr_weights(model_sampling, sigmas: torch.Tensor, gamma: float) -> torch.Tensor:
    """Min-SNR-γ weights of samples at these noise levels of the model, fp32; raises as `snr_prediction`."""
    sigma_data = getattr(model_sampling, "sigma_data", 1.0)
    return min_snr_weight(sigmas, gamma, snr_prediction(model_sampling), sigma_data)
