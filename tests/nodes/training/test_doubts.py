"""Training data that can be trained on and is hardly meant to be is called by its name before the first step."""

import pytest
import torch

from tests.support.image_to_video_models import IMAGE_TO_VIDEO, node_for_sampling, video_with_its_mask
from tests.support.toy_training import train


@pytest.fixture(scope="module")
def doubted(comfy):
    """LATENTs, CONDITIONINGs and others of read_training_data → kind of a doubt → its text."""
    read_training_data = comfy.pack_module("nodes.host.training.pairing").read_training_data
    doubts = comfy.pack_module("nodes.host.training.doubts").doubts
    return lambda *data, **others: dict(doubts(read_training_data(*data, **others)))


def noise(*shape, seed=1):
    return {"samples": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}


def caption(number=1.0, **options):
    return [[torch.full((1, 77, 768), number), options]]


def test_ordinary_data_raise_no_doubt(doubted):
    class_images = {"class_latents": [noise(40, 4, 8, 8)], "class_positive": [caption()]}
    assert doubted([noise(3, 4, 8, 8)], [caption()], **class_images) == {}


@pytest.mark.parametrize("empty", ["EmptyLatentImage", "EmptySD3LatentImage"])
def test_empty_latents_are_named(comfy, doubted, empty):
    latent = comfy.execute(empty, width=64, height=64, batch_size=2).outputs[0]
    channels = latent["samples"].shape[1]
    said = doubted([noise(1, channels, 8, 8), latent], [caption()])
    assert list(said) == ["empty images"]
    assert "2 images of 3 (2, 3) hold the same everywhere, as from an Empty Latent node" in said["empty images"]
    assert "VAE Encode" in said["empty images"]


def test_each_channel_may_have_a_value_of_its_own(doubted):
    even = {"samples": torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 8, 8).clone()}
    assert "1 image of 1 (1)" in doubted([even], [caption()])["empty images"]
    even["samples"][0, 3, 7, 7] += 1e-6
    assert doubted([even], [caption()]) == {}


def test_of_many_empty_images_the_first_are_numbered(doubted):
    said = doubted([{"samples": torch.zeros(40, 4, 8, 8)}], [caption(float(n)) for n in range(40)])
    assert "40 images of 40 (1, 2, 3, 4, 5 …) hold" in said["empty images"]


def test_class_images_are_doubted_by_their_own_name(doubted):
    empty = {"samples": torch.zeros(1, 4, 8, 8)}
    said = doubted([noise(1, 4, 8, 8)], [caption()], class_latents=[empty], class_positive=[caption()])
    assert "1 class image of 1" in said["empty class images"]


@pytest.mark.parametrize("name", list(IMAGE_TO_VIDEO))
def test_a_video_that_the_sampler_was_to_make_is_no_video(comfy, doubted, name):
    said = doubted([node_for_sampling(comfy, name)], [caption()])["empty images"]
    assert said.startswith("Where the noise mask is 1") and "Latent Blend with blend_factor 0" in said
    video = IMAGE_TO_VIDEO[name].latents(1)[0]
    assert doubted([video_with_its_mask(comfy, name, video)], [caption()]) == {}


MANY = 30


@pytest.mark.parametrize("latents, captions, doubt", [
    ([noise(MANY, 4, 8, 8)], [caption()], True),
    ([noise(MANY, 4, 8, 8)], [caption() for _ in range(MANY)], True),
    ([noise(MANY - 1, 4, 8, 8)], [caption()], False),
    ([noise(MANY, 4, 8, 8)], [*(caption() for _ in range(MANY - 1)), caption(2.0)], False),
    ([noise(MANY, 4, 8, 8)], [caption(reference_latents=[torch.tensor(float(n))]) for n in range(MANY)], False),
], ids=["one for all", "equal ones", "few images", "one is another", "each with its own picture"])  # fmt: skip
def test_one_caption_for_many_images(doubted, latents, captions, doubt):
    said = doubted(latents, captions)
    assert list(said) == ["captions"] * doubt
    if doubt:
        assert "All 30 images have the same caption" in said["captions"]


def test_doubts_are_said_before_the_first_step_and_stay(comfy, model, untouched, caplog, monkeypatch):
    texts, session = [], comfy.pack_module("sara_core.training.session")
    monkeypatch.setattr(comfy.pack_module("nodes.train"), "show_text", lambda node, text: texts.append(text))
    execute = session.TrainingSession.execute
    monkeypatch.setattr(session.TrainingSession, "execute", lambda self: texts.append("begins") or execute(self))
    train(comfy, model, ([{"samples": torch.zeros(1, 4, 8, 8)}], [caption()]), steps=1, include="time_embed")
    said = [number for number, text in enumerate(texts) if "hold the same everywhere" in text]
    assert said[0] == texts.index("begins") - 1 and said[-1] == len(texts) - 1
    assert "hold the same everywhere" in caplog.text


def test_latents_of_another_kind_are_refused(comfy, model, untouched):
    for latent, message in (
        (torch.randn(1, 16, 8, 8), "16 channels, this MODEL works with 4: encode the images with the VAE"),
        (torch.randn(1, 4, 1, 8, 8), r"\[1, 4, 1, 8, 8\], this MODEL works with \[1, channels, height, width\]"),
        (torch.randn(1, 64, 32), r"\[1, 64, 32\], this MODEL works with \[1, channels, height, width\]"),
    ):
        with pytest.raises(Exception, match=message) as raised:
            train(comfy, model, ([{"samples": latent}], [caption()]), steps=1)
        assert type(raised.value).__name__ == "TrainingError"
