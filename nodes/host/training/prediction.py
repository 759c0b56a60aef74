"""What a model's network predicts, by the equation with which the host turns it into the picture."""

import comfy.model_sampling
import torch

from ....sara_core.data.loss_weighting import min_snr_weight
from ....sara_core.errors import UnsupportedModelError

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
        raise UnsupportedModelError(
            "Min-SNR weighting is for models that predict noise or velocity, as SD1.5, SD2.1 and SDXL do, and this "
            "MODEL does not: set min_snr_gamma to 0. For a flow model (SD3, Flux, Wan …), noise_levels = logit-normal "
            "serves the same purpose."
        )
    return prediction


def min_snr_weights(model_sampling, sigmas: torch.Tensor, gamma: float) -> torch.Tensor:
    """Min-SNR-γ weights of samples at these noise levels of the model, fp32; raises as `snr_prediction`."""
    sigma_data = getattr(model_sampling, "sigma_data", 1.0)
    return min_snr_weight(sigmas, gamma, snr_prediction(model_sampling), sigma_data)
