"""SaRA Train Samples of models that make no pictures, or keep something of one sampling for the next."""

import wave

import numpy
import pytest
import torch

from tests.nodes.training.test_more_families import sample
from tests.support.toy_training import output  # noqa: F401 (fixture)
from tests.support.unrecognised_models import NETWORKS

MOMENTS, RATE = 60_000, 48_000


class Vae:
    """decoded: what it makes of every latent; latents: those that it was given"""

    audio_sample_rate = RATE

    def __init__(self, channels, decoded):
        self.latent_channels, self.decoded, self.latents = channels, decoded, []

    def decode(self, latent):
        self.latents.append(latent.clone())
        return self.decoded


def train(comfy, network, model, vae, captions=1, **options):
    samples = comfy.execute(
        "SaRATrainSamples", positive=[network.captions(captions)], vae=vae, every=1, steps=2
    ).outputs[0]  # fmt: skip
    return comfy.execute(
        "SaRATrain", model=model, latents=[{"samples": network.latents(1)[0]}], positive=[network.captions(1)],
        samples=samples, density=5.0, **{"steps": 1, "learning_rate": 1e-3, **options},
    ).outputs[0]  # fmt: skip


def new_model(network):
    with torch.inference_mode():
        return network.model()


@pytest.fixture
def previews(monkeypatch, comfy):
    from comfy import utils

    shown = []
    monkeypatch.setattr(utils.ProgressBar, "update_absolute", lambda bar, step, total, preview: shown.append(preview))
    return shown


def test_a_sound_is_kept_and_its_wave_is_shown(comfy, output, previews):  # noqa: F811
    network = NETWORKS["ACE-Step"]
    sound = torch.sin(torch.arange(MOMENTS) / 9)[:, None] * torch.tensor([1.0, 0.5])
    sound[: MOMENTS // 2] *= 0.1
    train(comfy, network, new_model(network), Vae(8, sound[None]), captions=2)
    files = sorted((output / "sara_samples").rglob("*"))
    assert [path.name for path in files[1:]] == [f"step_000000{n}.wav" for n in ("0_01", "0_02", "1_01", "1_02")]
    with wave.open(str(files[1]), "rb") as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (RATE, 2, MOMENTS)
        kept = numpy.frombuffer(file.readframes(MOMENTS), "<i2").reshape(MOMENTS, 2)
    assert numpy.abs(kept / 32767 - sound.numpy()).max() < 2e-5
    (_, (_, picture, _)) = previews
    dark = numpy.asarray(picture.convert("L")) < 128
    assert picture.size == (1024, 128)
    assert 5 * dark[:, :250].sum() < dark[:, 260:510].sum() > 0.9 * dark[:, 260:510].size


def test_what_is_neither_picture_nor_sound_is_said_once(comfy, output, previews, caplog):  # noqa: F811
    network = NETWORKS["Hunyuan3D 2.1"]
    delta = train(comfy, network, new_model(network), Vae(64, torch.zeros(1, 9, 9, 9)), steps=2)
    assert delta.nnz and previews == [None, None, None]
    assert "Training goes on without the pictures of step 2. The VAE of SaRA Train Samples decodes to" in caplog.text


def test_what_a_model_keeps_of_a_text_is_not_that_of_earlier_weights(comfy, output):  # noqa: F811
    network = NETWORKS["HiDream-O1"]
    vae, model = Vae(3, torch.zeros(1, 8, 8, 3)), new_model(network)
    delta = train(comfy, network, model, vae, steps=3, learning_rate=0.02)
    patched = comfy.execute("SaRAApply", model=model, delta=delta, strength=1.0).outputs[0]
    patched.model.diffusion_model.clear_kv_cache()
    expected = sample(comfy, network, patched)
    assert torch.equal(vae.latents[-1], expected) and not torch.equal(vae.latents[-2], expected)
