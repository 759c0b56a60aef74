"""Masks through SaRA Train: what is learned, what is refused, and that a run without them stays what it was."""

import pytest
import torch

from tests.nodes.training.test_session import OPTIONS, assert_same_delta, cancelled, snapshots  # noqa: F401 (fixture)
from tests.support import family_models
from tests.support.family_models import FAMILIES, FLUX_LAYOUT
from tests.support.image_to_video_models import IMAGE_TO_VIDEO, video_with_its_mask
from tests.support.toy_models import SD15_LAYOUT, assert_same_bits, loaded_weights
from tests.support.toy_training import train


def masked(latents, *masks):
    return [{**latent, "noise_mask": mask} for latent, mask in zip(latents, masks)]


def left(width, size=8):
    """A mask that leaves the first columns to learn."""
    mask = torch.zeros(1, 1, size, size)
    mask[..., :width] = 1
    return mask


def test_a_mask_of_ones_trains_the_very_bits_of_no_mask(comfy, model, data, untouched):
    latents, captions = data
    plain, plain_loss = train(comfy, model, data)
    ones, ones_loss = train(comfy, model, (masked(latents, *[torch.ones(1, 1, 64, 64)] * 3), captions))
    assert_same_delta(plain, ones)
    assert plain_loss == ones_loss


@pytest.fixture(scope="module")
def wan():
    with torch.inference_mode():
        return IMAGE_TO_VIDEO["Wan 2.2 5B"].model()


@pytest.fixture(scope="module")
def videos(comfy):
    network = IMAGE_TO_VIDEO["Wan 2.2 5B"]
    latents = [video_with_its_mask(comfy, "Wan 2.2 5B", video) for video in network.latents(3)]
    return latents, [[caption] for caption in network.captions(3)]


def test_a_run_with_masks_resumes_exactly(comfy, wan, videos, snapshots):  # noqa: F811
    options = {**OPTIONS, "steps": 4, "density": 5.0}
    straight, straight_loss = train(comfy, wan, videos, **options)
    cancelled(comfy, wan, videos, 3, **options)
    snapshot, = snapshots()
    latents, captions = videos
    with pytest.raises(Exception, match="not what they were then .data"):
        train(comfy, wan, (masked(latents, *[left(1, 4)] * 3), captions), **options, resume=snapshot.name)
    resumed, resumed_loss = train(comfy, wan, videos, **options, resume=snapshot.name)
    assert_same_delta(straight, resumed)
    assert straight_loss == resumed_loss


def test_dropped_captions_keep_their_mask(comfy, wan, videos):
    """All are learned with the empty caption, so that it does not matter what theirs were."""
    latents, captions = videos
    options = {"steps": 1, "caption_dropout": 1.0, "unconditional": captions[0]}
    dropped, loss = train(comfy, wan, videos, **options)
    other, other_loss = train(comfy, wan, (latents, captions[1:] + captions[:1]), **options)
    assert_same_delta(dropped, other)
    assert loss == other_loss
    _, unmasked_loss = train(comfy, wan, ([{"samples": latent["samples"]} for latent in latents], captions), **options)
    assert loss != unmasked_loss


@pytest.fixture(params=list(IMAGE_TO_VIDEO))
def name(request):
    return request.param


def train_video(comfy, model, network, latents, **settings):
    captions = [[caption] for caption in network.captions(len(latents))]
    return train(comfy, model, (latents, captions), **{"density": 5.0, "steps": 1, **settings})


def test_image_to_video_models_train_on_videos_with_their_nodes_masks(comfy, name, caplog):
    network = IMAGE_TO_VIDEO[name]
    with torch.inference_mode():
        model = network.model()
    before = {key: weight.clone() for key, weight in loaded_weights(model).items()}
    latents = [video_with_its_mask(comfy, name, video) for video in network.latents(2)]
    assert torch.equal(latents[0]["samples"], network.latents(2)[0])
    assert (latents[0]["noise_mask"].mean((0, 1, 3, 4)) == torch.tensor([0.0, 1, 1])).all()
    delta, loss = train_video(comfy, model, network, latents, steps=2, batch_size=2)
    assert delta.nnz and all(value > 0 for value in loss["loss"])
    assert "no estimate of the memory" not in caplog.text and "hold the same everywhere" not in caplog.text
    assert_same_bits(loaded_weights(model), before)


@pytest.mark.parametrize("name", ["Cosmos", "Cosmos Predict2"])
def test_models_that_find_their_picture_by_the_mask_need_one(comfy, name):
    network = IMAGE_TO_VIDEO[name]
    with pytest.raises(Exception, match="noise mask.*CosmosImageToVideoLatent.*Latent Blend"):
        train_video(comfy, network.model(), network, [{"samples": video} for video in network.latents(1)])


@pytest.mark.parametrize("name", ["Wan 2.2 5B", "LTX-V"])
def test_models_that_work_from_text_alone_too_need_none(comfy, name):
    network = IMAGE_TO_VIDEO[name]
    _, loss = train_video(comfy, network.model(), network, [{"samples": video} for video in network.latents(1)])
    assert loss["loss"][0] > 0


def inpainting_model(kind):
    """A MODEL of nine channels (SD1.5), or Flux Fill."""
    import comfy.sd
    from comfy.ldm.flux.model import Flux

    make = {
        "SD1.5": lambda: family_models.unet({**SD15_LAYOUT, "in_channels": 9}),
        "Flux": lambda: family_models.transformer(Flux, {**FLUX_LAYOUT, "in_channels": 96}),
    }[kind]
    return comfy.sd.load_diffusion_model_state_dict(family_models.random_state_dict(make))


@pytest.mark.parametrize("kind", ["SD1.5", "Flux"])
def test_inpainting_models_are_not_shown_what_they_are_to_learn(comfy, kind):
    family = FAMILIES[kind]
    with torch.inference_mode():
        model = inpainting_model(kind)
    latents, captions = masked([{"samples": latent} for latent in family.latents(1)], left(4)), family.captions(1)
    with pytest.raises(Exception, match="fills in what is masked.*InpaintModelConditioning"):
        train(comfy, model, (latents, [captions]), steps=1)
    captions[0][1].update(concat_latent_image=torch.zeros(1, *family.latent), concat_mask=left(4))
    _, loss = train(comfy, model, (latents, [captions]), steps=1)
    assert loss["loss"][0] > 0
