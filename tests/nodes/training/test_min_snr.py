"""Min-SNR weighting by the host's own equations: what it is worth for each kind of model, and where it is refused."""

import pytest
import torch


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "V_PREDICTION_EDM", "EDM", "V_PREDICTION_CONTINUOUS",
                                  "STABLE_CASCADE", "V_PREDICTION_DDPM"])
def test_min_snr_weights_put_min_snr_on_the_error_of_the_picture(comfy, kind):
    """By the host's own equation of each kind: error of x0 = b · error of the output, in units of sigma_data."""
    from comfy import model_base, supported_models

    prediction = comfy.pack_module("nodes.host.training.prediction")
    config = supported_models.SD15({"context_dim": 768})
    if kind == "EDM":
        config.sampling_settings = {"sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002}
    sampling = model_base.model_sampling(config, model_base.ModelType[kind])
    sigma = torch.tensor([0.05, 0.4, 1.0, 7.0])
    b = sampling.calculate_denoised(sigma, torch.ones(4, 1), torch.zeros(4, 1)).flatten()
    sigma_data = sampling.sigma_data
    weight = prediction.min_snr_weights(sampling, sigma, 5.0)
    snr = (sigma_data / sigma) ** 2
    assert kind != "EDM" or sigma_data == 0.5
    assert torch.allclose(weight, snr.clamp(max=5.0) * b**2 / sigma_data**2, rtol=1e-4)


@pytest.mark.parametrize("kind", ["FLOW", "FLUX", "FLOW_COSMOS", "IMG_TO_IMG", "IMG_TO_IMG_FLOW"])
def test_min_snr_is_refused_where_it_means_nothing(comfy, kind):
    from comfy import model_base, supported_models

    sampling = model_base.model_sampling(supported_models.SD15({"context_dim": 768}), model_base.ModelType[kind])
    with pytest.raises(Exception, match="min_snr_gamma to 0") as raised:
        comfy.pack_module("nodes.host.training.prediction").snr_prediction(sampling)
    assert type(raised.value).__name__ == "UnsupportedModelError"
