"""Min-SNR weights, by the paper's formulas and by what they mean."""

import pytest
import torch

from sara_core.data.loss_weighting import min_snr_weight

SIGMAS = torch.tensor([0.03, 0.2, 0.447, 1.0, 3.0, 14.6])


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_weights_are_those_of_the_paper(gamma):
    for sigma in SIGMAS.tolist():
        snr = 1 / sigma**2
        level = torch.tensor(sigma)
        assert min_snr_weight(level, gamma, "eps").item() == pytest.approx(min(snr, gamma) / snr, rel=1e-5)
        assert min_snr_weight(level, gamma, "v").item() == pytest.approx(min(snr, gamma) / (snr + 1), rel=1e-5)


def test_levels_with_much_noise_keep_the_weight_of_an_eps_model():
    assert (min_snr_weight(torch.tensor([1.0, 3.0, 14.6]), 5.0, "eps") == 1).all()


def test_weights_keep_shape_and_are_single_precision():
    weights = min_snr_weight(SIGMAS.double(), 5.0, "v")
    assert weights.shape == SIGMAS.shape and weights.dtype == torch.float32
