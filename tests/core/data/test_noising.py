"""Noise added to clean latents, and what a network then predicts: what diffusers' own scheduler says, bit for bit."""

import diffusers
import pytest
import torch

from sara_core.data.noising import DiffusionNoising
from tests.support.tiny_diffusers import BETAS

SCHEDULE = diffusers.DDPMScheduler(**BETAS)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_noisy_latents_and_targets_are_those_of_the_scheduler(prediction):
    torch.manual_seed(0)
    clean, noise = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    level = torch.tensor([0, 17, 500, 999])
    noising = DiffusionNoising(SCHEDULE.alphas_cumprod, prediction)
    target = noise if prediction == "eps" else SCHEDULE.get_velocity(clean, noise, level)
    assert torch.equal(noising.noisy(clean, noise, level), SCHEDULE.add_noise(clean, noise, level))
    assert torch.equal(noising.target(clean, noise, level), target)
    assert noising.levels == 1000 and torch.equal(noising.timesteps(level), level)
