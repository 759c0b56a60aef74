"""What a diffusers network says of a batch: its losses one by one and together, and their min-SNR weights."""

from types import SimpleNamespace

import diffusers
import pytest
import torch

from sara_core import UnsupportedModelError
from sara_core.commands.terminal import WORDS
from sara_core.data.denoising_loss import Sample
from sara_core.data.draws import Draws
from sara_core.data.noising import DiffusionNoising, FlowNoising
from sara_core.pipelines.network import DiffusersNetwork
from tests.support.tiny_diffusers import BETAS

FAMILY = SimpleNamespace(predict=lambda model, noisy, timesteps, conditions: model(noisy))
ALPHAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double().square().neg().add(1).cumprod(0)


def network(prediction="eps", noising=None):
    torch.manual_seed(0)
    noising = noising or DiffusionNoising(diffusers.DDPMScheduler(**BETAS).alphas_cumprod, prediction)
    model = torch.nn.Conv2d(3, 3, 3, padding=1)
    return DiffusersNetwork(model, FAMILY, noising, torch.device("cpu"), torch.float32, WORDS)


def draws():
    samples = [Sample(torch.full((3, 5, 5), float(number)), {"none": torch.zeros(1)}) for number in range(3)]
    return Draws(samples, 3, 1, 1000).next_batch()


def test_the_mean_is_that_of_the_losses_of_each_sample():
    ours, batch = network(), draws()
    losses = ours.losses(batch)
    assert losses.shape == (3,) and losses.dtype == torch.float32
    assert ours.mean_loss(batch).item() == pytest.approx(losses.mean().item(), rel=1e-6)
    assert [ours.mean_loss([draw]).item() for draw in batch] == pytest.approx(losses.tolist(), rel=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_weights_are_those_of_the_paper_at_the_models_levels(prediction, gamma):
    levels = [0, 3, 200, 700, 999]
    snr = ALPHAS[levels] / (1 - ALPHAS[levels])
    expected = snr.clamp(max=gamma) / (snr + 1 if prediction == "v" else snr)
    weights = network(prediction).min_snr_weights(levels, gamma)
    assert weights.dtype == torch.float32 and torch.allclose(weights.double(), expected, rtol=1e-3)


def test_a_flow_model_has_no_min_snr_weights_and_the_options_are_named():
    with pytest.raises(UnsupportedModelError, match="this model does not: set --min-snr-gamma to 0.*--noise-levels = "):
        network(noising=FlowNoising(torch.linspace(0.1, 1.0, 10))).min_snr_weights([0], 5.0)
