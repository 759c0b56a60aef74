"""Pictures while it trains: DDIM finds what a perfect model knows, and texts of unequal lengths go together."""

import pytest
import torch

from sara_webui.training.samples import Samples, padded
from tests.webui.training.fake_host import CHANNELS, FakeHost


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_model_that_knows_the_noise_draws_the_clean_picture(tmp_path, prediction):
    model = FakeHost(tmp_path).model
    clean = torch.linspace(-1, 1, CHANNELS * 64).view(1, CHANNELS, 8, 8)
    signal = model.signal.double()

    def predict(unet, noisy, timesteps, conditions):
        share = signal[timesteps[0]]
        noise = (noisy - share.sqrt() * clean) / (1 - share).sqrt()
        return (noise if prediction == "eps" else share.sqrt() * noise - (1 - share).sqrt() * clean).float()

    model.predict, model.prediction, model.picture = predict, prediction, lambda latent: latent
    drawn, = Samples(model, ["a cat"], (64, 64), 0, lambda: None).draw()
    assert torch.allclose(drawn, clean[0], atol=1e-3)


def test_the_random_numbers_of_the_process_stay_and_a_prompt_has_one_picture(tmp_path):
    model = FakeHost(tmp_path).model
    torch.manual_seed(5)
    state = torch.get_rng_state()
    samples = Samples(model, ["a cat", "a longer prompt of six"], (64, 32), 3, lambda: None)
    first, second = samples.draw(), samples.draw()
    assert torch.equal(torch.get_rng_state(), state)
    assert [picture.shape for picture in first] == [(32, 64, 3)] * 2
    assert all(map(torch.equal, first, second)) and not torch.equal(*first)


def test_shorter_texts_get_their_last_token_again():
    short, long = torch.arange(4.0).view(2, 2), torch.arange(8.0).view(4, 2)
    one, two = padded([{"crossattn": short, "vector": torch.ones(3)}, {"crossattn": long, "vector": torch.zeros(3)}])
    assert torch.equal(one["crossattn"], torch.tensor([[0.0, 1.0], [2.0, 3.0], [2.0, 3.0], [2.0, 3.0]]))
    assert torch.equal(two["crossattn"], long) and torch.equal(one["vector"], torch.ones(3))
