"""Models that training refuses by name, and weights that a model has without using them."""

import json
import logging

import pytest
import torch
import torch.nn.functional as F

from tests.support import family_models
from tests.support.family_models import FAMILIES, WAN_LAYOUT
from tests.support.toy_models import SD15_LAYOUT
from tests.support.unrecognised_models import NETWORKS, make_model


def loaded(comfy, state_dict, metadata=None):
    from comfy import sd

    with torch.inference_mode():
        return sd.load_diffusion_model_state_dict(state_dict, metadata=metadata)


def train(comfy, model, family, latents=None, options=()):
    latents = latents or family.latents(1)
    captions = family.captions(1)
    captions[0][1].update(options)
    return comfy.execute(
        "SaRATrain", model=model, latents=[{"samples": latents[0]}], positive=[captions], steps=1, learning_rate=1e-3,
    ).outputs  # fmt: skip


# What reads the view of a picture that a CLIP vision model gives.
UNUSED = {"diffusion_model.img_emb.proj.1.weight", "diffusion_model.img_emb.proj.3.weight"}


@pytest.fixture(scope="module")
def image_to_video(comfy):
    """Wan 2.1 I2V: 16 more channels for a picture and 4 for a mask, and layers for what CLIP sees in the picture."""
    from comfy.ldm.wan.model import WanModel

    layout = {**WAN_LAYOUT, "model_type": "i2v", "in_dim": 36}
    return loaded(comfy, family_models.random_state_dict(lambda: family_models.transformer(WanModel, layout)))


def test_an_autoregressive_model_is_refused(comfy):
    metadata = {"config": json.dumps({"transformer": {"causal_ar": True}})}
    model = loaded(comfy, FAMILIES["Wan 2.1"].state_dict(), metadata)
    with pytest.raises(Exception, match="Wan 2.1 CausVid MODEL cannot be trained.*piece by piece"):
        train(comfy, model, FAMILIES["Wan 2.1"])


def test_a_model_that_starts_from_no_noise_is_refused(comfy):
    layout = {**SD15_LAYOUT, "num_classes": "sequential", "adm_in_channels": 4, "context_dim": 1024,
              "use_linear_in_transformer": True}  # fmt: skip
    model = loaded(comfy, family_models.random_state_dict(lambda: family_models.unet(layout)))
    with pytest.raises(Exception, match="Lotus MODEL cannot be trained.*without starting from noise"):
        train(comfy, model, FAMILIES["SD2.1"])


def test_a_model_of_several_latents_is_refused_for_what_it_is(comfy):
    from comfy.nested_tensor import NestedTensor

    layout = {"image_model": "triposplat", "q_token_length": 16, "model_channels": 64, "cond_channels": 32,
              "num_blocks": 1, "num_refiner_blocks": 1}  # fmt: skip
    with torch.inference_mode():
        model = make_model("TripoSplat", layout)
    latent = NestedTensor([torch.randn(1, 16, 16), torch.randn(1, 1, 5)])
    with pytest.raises(Exception, match="TripoSplat MODEL cannot be trained: it makes a thing and its camera at once"):
        train(comfy, model, FAMILIES["SD1.5"], latents=[latent])


@pytest.mark.parametrize("name, left_out, said", [
    ("PiD", "lq_latent", "PiD MODEL cannot work with what the captions carry .*PiDConditioning.*KSampler"),
    ("HiDream-O1", "text_input_ids", "HiDream-O1 MODEL cannot work with .*requires input_ids"),
    ("ACE-Step", "conditioning_lyrics", "ACE-Step MODEL cannot work with what the captions carry"),
    ("SCAIL", "reference_latents", "SCAIL MODEL works from a picture.*WanSCAILToVideo"),
    ("HuMo 17B", "reference_latents", "HuMo MODEL works from a picture.*WanHuMoImageToVideo"),
])  # fmt: skip
def test_what_a_caption_lacks_is_said_in_the_users_words(comfy, name, left_out, said):
    network = NETWORKS[name]
    with torch.inference_mode():
        model = network.model()
    captions = network.captions(1)
    del captions[0][1][left_out]
    with pytest.raises(comfy.pack_module("sara_core.errors").SaRAError, match=said):
        comfy.execute(
            "SaRATrain", model=model, latents=[{"samples": network.latents(1)[0]}], positive=[captions], steps=1,
            density=5.0, learning_rate=1e-3,
        )  # fmt: skip


def test_image_to_video_needs_the_image(comfy, image_to_video):
    with pytest.raises(Exception, match="Wan 2.1 MODEL works from a picture.*WanImageToVideo"):
        train(comfy, image_to_video, FAMILIES["Wan 2.1"])


def test_image_to_video_trains_with_the_image(comfy, image_to_video):
    family = FAMILIES["Wan 2.1"]
    seen = type("Seen", (), {"penultimate_hidden_states": torch.randn(1, 257, 1280)})()
    options = {"concat_latent_image": torch.randn(1, 16, 2, 8, 8), "concat_mask": torch.ones(1, 4, 2, 8, 8),
               "clip_vision_output": seen}  # fmt: skip
    delta, loss = train(comfy, image_to_video, family, options=options)
    assert loss["loss"][0] > 0 and any(".k_img." in name for name in delta.entries)


def test_an_inpainting_model_trains_with_everything_masked(comfy):
    layout = {**SD15_LAYOUT, "in_channels": 9}
    model = loaded(comfy, family_models.random_state_dict(lambda: family_models.unet(layout)))
    assert model.model.concat_keys == ("mask", "masked_image")
    delta, _ = train(comfy, model, FAMILIES["SD1.5"])
    assert delta.nnz


@pytest.fixture
def training(comfy, image_to_video):
    """A model prepared for training with a picture in its caption, but without CLIP's view of it."""
    isolation, family = comfy.pack_module("nodes.host.training.isolation"), FAMILIES["Wan 2.1"]
    captions = family.captions(1)
    captions[0][1]["concat_latent_image"] = torch.randn(1, 16, 2, 8, 8)
    with torch.inference_mode(False), torch.enable_grad():
        with isolation.training_model(image_to_video, {"density": 0.05}, (1, *family.latent)) as training:
            pairs = comfy.pack_module("nodes.host.training.pairing").Pairs(family.latents(1), captions)
            samples = comfy.pack_module("nodes.host.training.dataset").prepare_samples(training.patcher, pairs, seed=0)
            denoiser = comfy.pack_module("nodes.host.training.denoiser").Denoiser(training.patcher)
            sigma, noise = denoiser.sigmas[500].clone(), family.latents(1, seed=3)
            training.loss = lambda: denoiser.losses(samples, [sigma], noise).mean()
            yield training


def test_weights_without_an_effect_are_named_and_left_alone(comfy, training, caplog):
    check = comfy.pack_module("nodes.host.training.unused").check_used_weights_reached
    store, before = training.store, training.loss()
    before.backward()
    assert set(store.unreached()) == UNUSED
    with caplog.at_level(logging.INFO):
        check(store, lambda: training.loss)
    assert "2 of" in caplog.text and all(name in caplog.text for name in UNUSED)
    assert not store.unreached()
    assert not store.values.any() and torch.equal(training.loss(), before)


def test_weights_with_an_effect_and_no_gradient_are_an_error(comfy, training):
    check = comfy.pack_module("nodes.host.training.unused").check_used_weights_reached
    layer = training.patcher.model.diffusion_model.patch_embedding
    layer.forward = lambda x: F.conv3d(x, layer.weight, layer.bias, layer.stride)
    try:
        before = training.loss()
        before.backward()
        with pytest.raises(Exception, match="got no gradient: .*patch_embedding.weight"):
            check(training.store, lambda: training.loss)
        assert torch.equal(training.loss(), before)
    finally:
        del layer.forward


def test_where_every_weight_is_reached_nothing_is_computed(comfy, training):
    check = comfy.pack_module("nodes.host.training.unused").check_used_weights_reached
    training.store.reached = [True] * len(training.store.support)
    check(training.store, None)
