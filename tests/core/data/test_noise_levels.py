"""How often each noise level is drawn."""

import math
from statistics import NormalDist

import pytest
import torch

from sara_core.data.noise_levels import NoiseLevels

DRAWS = 20_000


def drawn(noise_levels, levels=1000, draws=DRAWS):
    generator = torch.Generator().manual_seed(0)
    return torch.tensor([noise_levels.draw(levels, generator) for _ in range(draws)])


def test_uniform_draws_are_those_of_randint():
    generator = torch.Generator().manual_seed(0)
    assert drawn(NoiseLevels(), 1000, 50).tolist() == [
        int(torch.randint(1000, (1,), generator=generator)) for _ in range(50)
    ]


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (0.5, 1.0), (-1.0, 0.6)])
def test_logit_normal_draws_have_that_distribution(mean, std):
    """Against the exact distribution function, within five standard errors."""
    positions = drawn(NoiseLevels("logit-normal", mean, std))
    for level in (50, 200, 500, 800, 950):
        expected = NormalDist(mean, std).cdf(math.log(level / (1000 - level)))
        error = math.sqrt(expected * (1 - expected) / DRAWS)
        assert abs((positions < level).double().mean().item() - expected) <= 5 * error + 1e-9


def test_a_mean_above_zero_prefers_much_noise():
    """Tables of noise levels rise."""
    much, little = (drawn(NoiseLevels("logit-normal", mean), draws=500).float().mean() for mean in (1.0, -1.0))
    assert much > 600 and little < 400


@pytest.mark.parametrize("mean", [-60.0, 60.0])
def test_the_far_tail_stays_in_the_table(mean):
    positions = drawn(NoiseLevels("logit-normal", mean, 1.0), levels=50, draws=20)
    assert set(positions.tolist()) == {0 if mean < 0 else 49}
