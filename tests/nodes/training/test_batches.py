"""What a batch draws and how its loss is put together: seeds, resuming, caption dropout, class images, weights."""

import pytest
import torch

SIGMAS = torch.linspace(0.05, 14.0, 200)
EVERYTHING = {"caption_dropout": 0.4, "prior_weight": 0.7, "min_snr_gamma": 5.0}


@pytest.fixture(scope="module")
def batches(comfy):
    return comfy.pack_module("nodes.host.training.batches")


@pytest.fixture(scope="module")
def make_samples(comfy):
    """count samples of two sizes, recognisable by their latent; their conditions say which caption is used."""
    sample = comfy.pack_module("nodes.host.training.dataset").Sample
    sizes = [(1, 4, 8, 8), (1, 4, 8, 16)]

    def make(count, first=0):
        return [
            sample(torch.full(sizes[n % 3 == 2], float(n)), {"caption": Text(n)}, {"caption": Text("")})
            for n in range(first, first + count)
        ]

    return make


class Text:
    """A condition that is only looked at."""

    def __init__(self, cond):
        self.cond = cond

    def _copy_with(self, cond):
        return Text(cond)


class Recording:
    """In the Denoiser's place: the loss of a sample is a number made of what was drawn for it, and all is kept."""

    sigmas = SIGMAS

    def __init__(self, comfy):
        from comfy import model_base, supported_models

        class Model:
            model_sampling = model_base.model_sampling(
                supported_models.SD15({"context_dim": 768}), model_base.ModelType.EPS
            )

        self.patcher = type("Patcher", (), {"model": Model(), "load_device": torch.device("cpu")})()
        self.calls = []

    def losses(self, samples, sigmas, noises):
        values = [sample.latent.mean() + noise.mean() for sample, noise in zip(samples, noises)]
        self.calls.append([
            (int(sample.latent[0, 0, 0, 0]), sample.conditions["caption"].cond, sigma.item(), noise.mean().item())
            for sample, sigma, noise in zip(samples, sigmas, noises)
        ])
        return torch.stack(values)


@pytest.fixture
def recorded(comfy, batches, make_samples):
    """Run `count` batches of a new DenoisingLoss; returns it, the losses and what was drawn."""

    def run(count=0, samples=None, batch_size=2, seed=0, **options):
        denoiser = Recording(comfy)
        loss = batches.DenoisingLoss(denoiser, samples or make_samples(7), batch_size, seed, **options)
        return loss, [loss().item() for _ in range(count)], denoiser.calls

    return run


@pytest.fixture
def everything(comfy, make_samples):
    levels = comfy.pack_module("sara_core.data.noise_levels").NoiseLevels("logit-normal", 0.3, 0.8)
    return {**EVERYTHING, "noise_levels": levels, "class_samples": make_samples(5, first=100)}


def test_one_seed_draws_the_same_and_another_seed_does_not(recorded, everything):
    _, losses, drawn = recorded(20, **everything)
    assert recorded(20, **everything)[1:] == (losses, drawn)
    assert recorded(20, seed=1, **everything)[2] != drawn


@pytest.mark.parametrize("before", [1, 5, 12])
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_a_resumed_run_draws_what_the_uninterrupted_one_does(recorded, everything, before, batch_size):
    _, losses, drawn = recorded(before + 15, batch_size=batch_size, **everything)
    loss, _, _ = recorded(before, batch_size=batch_size, **everything)
    state = loss.state()
    [loss() for _ in range(3)]  # what is drawn after the state was taken does not change it

    resumed, _, calls = recorded(batch_size=batch_size, **everything)
    [resumed() for _ in range(3)]
    resumed.load_state(state)
    del calls[:]
    assert [resumed().item() for _ in range(15)] == losses[before:]
    assert calls == drawn[before:]


def test_a_state_survives_a_snapshot(comfy, recorded, everything, tmp_path):
    snapshot = comfy.pack_module("sara_core.training.snapshot")
    loss, _, _ = recorded(3, **everything)
    snapshot.save(tmp_path / "run.safetensors", loss.state(), {})
    expected = [loss().item() for _ in range(5)]
    resumed, _, _ = recorded(**everything)
    resumed.load_state(snapshot.load(tmp_path / "run.safetensors")[0])
    assert [resumed().item() for _ in range(5)] == expected


@pytest.mark.parametrize("change, message", [
    ({"samples": 6}, "had 7 images, now there are 6"),
    ({"class_samples": []}, "had class images in class_latents, now there are none"),
])
def test_other_images_cannot_be_resumed(recorded, everything, make_samples, change, message):
    state = recorded(1, **everything)[0].state()
    if "samples" in change:
        change = {"samples": make_samples(change["samples"])}
    with pytest.raises(Exception, match=message) as raised:
        recorded(**{**everything, **change})[0].load_state(state)
    assert type(raised.value).__name__ == "TrainingError"


def test_a_damaged_order_is_refused(recorded):
    loss, _, _ = recorded(1)
    state = loss.state()
    state["images"]["queue"] = [0, 7]
    with pytest.raises(Exception, match="damaged"):
        loss.load_state(state)


def test_a_batch_draws_what_single_samples_do(recorded, make_samples):
    """Gradient accumulation is a larger batch in parts, also across epochs."""
    samples = make_samples(2)  # of one size: batches of mixed sizes are ordered by size
    options = {"caption_dropout": 0.5, "samples": samples}
    at_once = sum(recorded(6, batch_size=2, **options)[2], [])
    one_by_one = sum(recorded(12, batch_size=1, **options)[2], [])
    assert at_once == one_by_one


def test_captions_are_dropped_as_often_as_asked(recorded):
    for dropout in (0.0, 0.3, 1.0):
        draws = sum(recorded(500, caption_dropout=dropout)[2], [])
        dropped = sum(text == "" for _, text, _, _ in draws)
        assert abs(dropped - 1000 * dropout) <= 5 * (1000 * dropout * (1 - dropout)) ** 0.5
        assert all(text in ("", number) for number, text, _, _ in draws)


def test_levels_come_from_the_models_table(recorded):
    assert {sigma for call in recorded(50)[2] for _, _, sigma, _ in call} <= set(SIGMAS.tolist())


def test_class_images_join_every_batch_with_their_weight(recorded, make_samples):
    options = {"class_samples": make_samples(3, first=100), "batch_size": 4}
    _, alone, drawn = recorded(6, batch_size=4)
    _, losses, with_class = recorded(6, prior_weight=0.5, **options)
    assert [call[:4] for call in with_class] == drawn  # class images change nothing for the others
    assert all(len(call) == 8 and all(number >= 100 for number, *_ in call[4:]) for call in with_class)
    for loss, first, call in zip(losses, alone, with_class):
        class_losses = [number + noise for number, *_, noise in call[4:]]
        assert loss == pytest.approx(first + 0.5 * sum(class_losses) / 4, rel=1e-5)


def test_class_images_and_others_are_drawn_independently(recorded, make_samples):
    draws = recorded(20, samples=make_samples(4), class_samples=make_samples(4), batch_size=1)[2]
    assert all(first[2:] != second[2:] for first, second in draws)


def test_min_snr_weighs_each_sample_by_its_own_level(recorded):
    _, _, drawn = recorded(8, batch_size=1)
    _, plain, _ = recorded(8, batch_size=1)
    _, weighted, _ = recorded(8, batch_size=1, min_snr_gamma=5.0)
    for loss, weighed, ((_, _, sigma, _),) in zip(plain, weighted, drawn):
        assert weighed == pytest.approx(loss * min(1 / sigma**2, 5.0) * sigma**2, rel=1e-4)


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
