"""How often each noise level is drawn."""

import math
from statistics import NormalDist

import pytest
import torch

from sara_core.data.noise_levels import RANGES, NoiseLevels, levels_within, noise_range
from sara_core.errors import TrainingError

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


SIGMAS = torch.linspace(0.1, 1.0, 10)


@pytest.mark.parametrize(
    "least, most, levels",
    [(0.0, 0.0, range(10)), (0.35, 0.0, range(3, 10)), (0.0, 0.35, range(3)), (0.35, 0.75, range(3, 7)),
     (0.05, 9.0, range(10)), (0.95, 1.5, range(9, 10))],
)  # fmt: skip
def test_a_range_has_the_levels_between_its_ends(least, most, levels):
    assert levels_within(SIGMAS, least, most) == levels


@pytest.mark.parametrize("least, most", [(2.0, 0.0), (0.0, 0.05), (0.7, 0.3), (0.31, 0.39)])
def test_a_range_without_levels_is_refused_with_what_the_model_has(least, most):
    with pytest.raises(TrainingError, match=r"no noise level from .*from 0\.1 to 1\. "):
        levels_within(SIGMAS, least, most)


def test_the_two_experts_of_wan_share_all_levels_between_them():
    sigmas = torch.linspace(0.001, 1, 1000)
    for kind, boundary in (("T2V", 0.875), ("I2V", 0.9)):
        high, low = (
            levels_within(sigmas, *noise_range(f"Wan 2.2 {kind} {part} noise", 0.0, 0.0)) for part in ("high", "low")
        )
        assert low.start == 0 and high.stop == 1000 and abs(float(sigmas[high.start]) - boundary) < 0.0011
        assert 0 <= low.stop - high.start <= 1


def test_ends_that_are_given_replace_those_of_the_preset():
    assert noise_range("Wan 2.2 T2V low noise", 0.2, 0.0) == (0.2, 0.875)
    assert noise_range("Wan 2.2 T2V low noise", 0.0, 0.5) == (0.0, 0.5)
    assert noise_range("automatic", 0.0, 0.0) == noise_range("all", 0.0, 0.0, floor=0.05) == (0.0, 0.0)
    assert noise_range("automatic", 0.0, 0.0, floor=0.05) == (0.05, 0.0)
    assert noise_range("automatic", 0.01, 0.0, floor=0.05) == (0.01, 0.0)
    assert all(noise_range(preset, 0.0, 0.0, floor=0.05) == ends for preset, ends in RANGES.items() if any(ends))
