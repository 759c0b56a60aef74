"""LTX-V's guides (LTXVAddGuide): frames behind the video's that the model looks at; captions hold their places."""

import pytest
import torch

from tests.support.image_to_video_models import IMAGE_TO_VIDEO, FirstFrameVAE
from tests.support.toy_training import denoising_loss, train

NETWORK = IMAGE_TO_VIDEO["LTX-V"]
FRAMES = NETWORK.latent[1]


@pytest.fixture(scope="module")
def model(comfy):
    import comfy.model_management

    with torch.inference_mode():
        model = NETWORK.model()
        comfy.model_management.load_models_gpu([model])
        return model


class GuideVAE(FirstFrameVAE):
    """In time as LTX's, eight pictures a frame."""

    def __init__(self):
        super().__init__(128, 32)
        self.downscale_index_formula = (8, 32, 32)


def guided(comfy, latent=None, caption=None, **options):
    """(caption, latent) with a guide, as the node gives them to a sampler."""
    given = {"strength": 1.0, "frame_idx": 0, **options}
    return comfy.execute(
        "LTXVAddGuide", positive=caption or NETWORK.captions(1), negative=NETWORK.captions(1), vae=GuideVAE(),
        latent=latent or {"samples": NETWORK.latents(1)[0]}, image=torch.zeros(1, 64, 64, 3), **given,
    ).outputs[::2]  # fmt: skip


def prepared(comfy, model, caption, latent):
    masks = comfy.pack_module("nodes.host.training.masks").image_masks(latent)
    pairs = comfy.pack_module("nodes.host.training.pairing").Pairs([latent["samples"]], caption, masks=masks)
    return comfy.pack_module("nodes.host.training.dataset").prepare_samples(model, pairs, seed=0)


def loss_of(comfy, model, caption, latent):
    """The loss that the node trains with, before the first step."""
    with torch.inference_mode(False), torch.no_grad():
        return float(denoising_loss(comfy, model, prepared(comfy, model, caption, latent), 1)())


GUIDES = {
    "whole": {},
    "weak": {"strength": 0.6},
    "at the end": {"frame_idx": -1},
    "looked at in part": {"attention_mask": torch.full((1, 64, 64), 0.5)},
    "of half the size": {"iclora_parameters": {"reference_downscale_factor": 2}},
}


def test_every_kind_of_guide_counts(comfy, model):
    losses = {kind: loss_of(comfy, model, *guided(comfy, **options)) for kind, options in GUIDES.items()}
    assert all(loss > 0 for loss in losses.values())
    assert len(set(losses.values())) == len(losses)


def test_videos_with_two_guides_train(comfy, model):
    caption, latent = guided(comfy, *reversed(guided(comfy)), frame_idx=-1)
    assert latent["samples"].shape[2] == FRAMES + 2
    delta, losses = train(comfy, model, ([latent], [caption]), steps=1, density=5.0)
    assert delta.nnz and losses["loss"][0] > 0


def test_the_guide_itself_is_not_learned(comfy, model):
    with torch.inference_mode(False):
        sample, = prepared(comfy, model, *guided(comfy))
    learned = comfy.pack_module("nodes.host.training.masks").learned(sample.mask)
    assert (learned.mean((0, 1, 3, 4)) == torch.tensor([1.0] * FRAMES + [0.0])).all()
    assert {"keyframe_idxs", "guide_attention_entries", "denoise_mask"} <= sample.conditions.keys()


@pytest.mark.parametrize("masked", [False, True], ids=["without a mask", "with a mask of their own"])
def test_latents_that_lack_the_guides_are_refused_by_name(comfy, model, masked):
    caption, latent = guided(comfy)
    video = {"samples": latent["samples"][:, :, :FRAMES]}
    if masked:
        video["noise_mask"] = torch.ones(1, 1, FRAMES, 1, 1)
        video["noise_mask"][:, :, 0] = 0
    with pytest.raises(Exception, match="guides.*'latent' of the last LTXVAddGuide"):
        train(comfy, model, ([video], [caption]), steps=1, density=5.0)
