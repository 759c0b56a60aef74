"""What a batch draws and how its loss is put together: seeds, resuming, caption dropout, class images, weights."""

from contextlib import contextmanager

import pytest
import torch

from sara_core.data.denoising_loss import KEPT_AS_BEFORE, DenoisingLoss, Sample, repeated
from sara_core.data.loss_weighting import min_snr_weight
from sara_core.data.noise_levels import NoiseLevels
from sara_core.errors import TrainingError, UnsupportedModelError
from sara_core.training import snapshot

SIGMAS = torch.linspace(0.05, 14.0, 200)
SIZES = [(1, 4, 8, 8), (1, 4, 8, 16)]


def make_samples(count, first=0):
    """Samples of two sizes, recognisable by their latent; their conditions say which caption is used."""
    return [
        Sample(torch.full(SIZES[n % 3 == 2], float(n)), {"caption": n}, {"caption": ""})
        for n in range(first, first + count)
    ]


class Recording:
    """A network: the loss of a sample is a number made of what was drawn for it, and all is kept."""

    levels, sigmas = len(SIGMAS), SIGMAS

    def __init__(self):
        self.calls = []

    def losses(self, draws):
        self.calls.append([
            (int(sample.latent[0, 0, 0, 0]), sample.conditions["caption"], SIGMAS[level].item(), noise.mean().item())
            for sample, level, noise in draws
        ])
        return torch.stack([sample.latent.mean() + noise.mean() for sample, _, noise in draws])

    def mean_loss(self, draws):
        return self.losses(draws).mean()

    def min_snr_weights(self, levels, gamma):
        return min_snr_weight(SIGMAS[levels], gamma, "eps")


EVERYTHING = {
    "caption_dropout": 0.4, "prior_weight": 0.7, "min_snr_gamma": 5.0, "class_samples": make_samples(5, first=100),
    "noise_levels": NoiseLevels("logit-normal", 0.3, 0.8),
}  # fmt: skip


def recorded(count=0, samples=None, batch_size=2, seed=0, **options):
    """Run `count` batches of a new DenoisingLoss; returns it, the losses and what was drawn."""
    network = Recording()
    loss = DenoisingLoss(network, samples or make_samples(7), batch_size, seed, **options)
    return loss, [loss().item() for _ in range(count)], network.calls


class Shifted(Recording):
    """Says a number of each draw; the target is 3 unless another is given."""

    said = 5.0

    def losses(self, draws, targets=()):
        targets = [3.0 if target is None else target.item() for target in targets or [None] * len(draws)]
        return torch.tensor([(self.said - target) ** 2 for target in targets])

    def predictions(self, draws):
        self.asked = [sample.conditions["caption"] for sample, *_ in draws]
        return [torch.tensor(self.said) for _ in draws]


def test_class_captions_aim_at_what_was_said_before():
    network = Shifted()

    @contextmanager
    def before():
        now, network.said = network.said, 4.0
        try:
            yield
        finally:
            network.said = now

    loss = DenoisingLoss(
        network, make_samples(6), 2, 0, class_samples=make_samples(6, first=100), as_before=before, prior_weight=10.0
    )  # fmt: skip
    assert loss().item() == (5 - 3) ** 2 + KEPT_AS_BEFORE * 10 * (5 - 4) ** 2
    assert len(network.asked) == 2 and min(network.asked) >= 100
    network.said = 4.0
    assert loss().item() == 1


def test_one_seed_draws_the_same_and_another_seed_does_not():
    _, losses, drawn = recorded(20, **EVERYTHING)
    assert recorded(20, **EVERYTHING)[1:] == (losses, drawn)
    assert recorded(20, seed=1, **EVERYTHING)[2] != drawn


@pytest.mark.parametrize("before", [1, 5, 12])
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_a_resumed_run_draws_what_the_uninterrupted_one_does(before, batch_size):
    _, losses, drawn = recorded(before + 15, batch_size=batch_size, **EVERYTHING)
    loss, _, _ = recorded(before, batch_size=batch_size, **EVERYTHING)
    state = loss.state()
    [loss() for _ in range(3)]  # what is drawn after the state was taken does not change it

    resumed, _, calls = recorded(batch_size=batch_size, **EVERYTHING)
    [resumed() for _ in range(3)]
    resumed.load_state(state)
    del calls[:]
    assert [resumed().item() for _ in range(15)] == losses[before:]
    assert calls == drawn[before:]


def test_a_state_survives_a_snapshot(tmp_path):
    loss, _, _ = recorded(3, **EVERYTHING)
    snapshot.save(tmp_path / "run.safetensors", loss.state(), {})
    expected = [loss().item() for _ in range(5)]
    resumed, _, _ = recorded(**EVERYTHING)
    resumed.load_state(snapshot.load(tmp_path / "run.safetensors")[0])
    assert [resumed().item() for _ in range(5)] == expected


@pytest.mark.parametrize("change, message", [
    ({"samples": 6}, "had 7 images, now there are 6"),
    ({"class_samples": []}, "had class images, now there are none"),
])
def test_other_images_cannot_be_resumed(change, message):
    state = recorded(1, **EVERYTHING)[0].state()
    if "samples" in change:
        change = {"samples": make_samples(change["samples"])}
    with pytest.raises(TrainingError, match=message):
        recorded(**{**EVERYTHING, **change})[0].load_state(state)


def test_a_damaged_order_is_refused():
    loss, _, _ = recorded(1)
    state = loss.state()
    state["images"]["queue"] = [0, 7]
    with pytest.raises(Exception, match="damaged"):
        loss.load_state(state)


def test_a_batch_draws_what_single_samples_do():
    """Gradient accumulation is a larger batch in parts, also across epochs."""
    samples = make_samples(2)  # of one size: batches of mixed sizes are ordered by size
    options = {"caption_dropout": 0.5, "samples": samples}
    at_once = sum(recorded(6, batch_size=2, **options)[2], [])
    one_by_one = sum(recorded(12, batch_size=1, **options)[2], [])
    assert at_once == one_by_one


def test_captions_are_dropped_as_often_as_asked():
    for dropout in (0.0, 0.3, 1.0):
        draws = sum(recorded(500, caption_dropout=dropout)[2], [])
        dropped = sum(text == "" for _, text, _, _ in draws)
        assert abs(dropped - 1000 * dropout) <= 5 * (1000 * dropout * (1 - dropout)) ** 0.5
        assert all(text in ("", number) for number, text, _, _ in draws)


def test_levels_come_from_the_models_table():
    assert {sigma for call in recorded(50)[2] for _, _, sigma, _ in call} <= set(SIGMAS.tolist())


def test_class_images_join_every_batch_with_their_weight():
    options = {"class_samples": make_samples(3, first=100), "batch_size": 4}
    _, alone, drawn = recorded(6, batch_size=4)
    _, losses, with_class = recorded(6, prior_weight=0.5, **options)
    assert [call[:4] for call in with_class] == drawn  # class images change nothing for the others
    assert all(len(call) == 8 and all(number >= 100 for number, *_ in call[4:]) for call in with_class)
    for loss, first, call in zip(losses, alone, with_class):
        class_losses = [number + noise for number, *_, noise in call[4:]]
        assert loss == pytest.approx(first + 0.5 * sum(class_losses) / 4, rel=1e-5)


def test_class_images_and_others_are_drawn_independently():
    draws = recorded(20, samples=make_samples(4), class_samples=make_samples(4), batch_size=1)[2]
    assert all(first[2:] != second[2:] for first, second in draws)


def test_min_snr_weighs_each_sample_by_its_own_level():
    _, _, drawn = recorded(8, batch_size=1)
    _, plain, _ = recorded(8, batch_size=1)
    _, weighted, _ = recorded(8, batch_size=1, min_snr_gamma=5.0)
    for loss, weighed, ((_, _, sigma, _),) in zip(plain, weighted, drawn):
        assert weighed == pytest.approx(loss * min(1 / sigma**2, 5.0) * sigma**2, rel=1e-4)


def test_min_snr_is_refused_at_once_by_a_network_that_it_means_nothing_to(monkeypatch):
    def refuse(*_):
        raise UnsupportedModelError("planted")

    monkeypatch.setattr(Recording, "min_snr_weights", refuse)
    with pytest.raises(UnsupportedModelError, match="planted"):
        recorded(min_snr_gamma=5.0)
    recorded()


def test_processes_compute_their_parts_of_the_same_batches():
    """With class images too: the losses' mean over two processes is that of one, and so is all that is drawn."""
    _, losses, drawn = recorded(5, batch_size=4, **EVERYTHING)
    parts = [recorded(5, batch_size=4, own_part=lambda draws: draws[rank::2], **EVERYTHING) for rank in range(2)]
    for whole, first, second in zip(drawn, parts[0][2], parts[1][2]):
        assert {*first, *second} == {*whole} and len(first) == len(second) == 4
    assert [(a + b) / 2 for a, b in zip(parts[0][1], parts[1][1])] == pytest.approx(losses, rel=1e-5)


def test_the_coming_batch_can_be_repeated():
    loss, losses, _ = recorded(2, **EVERYTHING)
    again = repeated(loss)
    assert again().item() == again().item() == recorded(3, **EVERYTHING)[1][2]


def test_only_the_levels_of_a_noise_range_are_drawn_and_each_of_them():
    least, most = SIGMAS[2].item(), SIGMAS[5].item()
    _, _, drawn = recorded(60, noise_range=(least, most), class_samples=make_samples(5, first=100))
    assert {call[2] for batch in drawn for call in batch} == {sigma.item() for sigma in SIGMAS[2:6]}
    assert recorded(5, noise_range=(0.0, 0.0))[1:] == recorded(5)[1:]
