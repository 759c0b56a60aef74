"""The demo's model draws what it is asked for, and SaRA Train teaches it a style: 200 samples each, judged."""

import numpy as np
import pytest
import torch
from PIL import Image

from demo import evaluate, settings
from devtools.demo import STYLE_FOLDER


@pytest.fixture(scope="module")
def base(comfy, checkpoint):
    with torch.inference_mode():
        return evaluate.load(checkpoint)


@pytest.fixture(scope="module")
def styled(comfy, base):
    """The base with the delta that the demo's settings train on the demo's style folder."""
    pictures = sorted(STYLE_FOLDER.glob("*.png"))
    latents, captions = [], []
    for picture in pictures:
        pixels = torch.from_numpy(np.asarray(Image.open(picture).convert("RGB"), dtype=np.float32) / 255)[None]
        latents.append(comfy.execute("VAEEncode", pixels=pixels, vae=base.vae).outputs[0])
        text = picture.with_suffix(".txt").read_text(encoding="utf-8")
        captions.append(comfy.execute("CLIPTextEncode", clip=base.clip, text=text).outputs[0])
    delta, _ = comfy.execute(
        "SaRATrain", model=base.model, latents=latents, positive=captions, **settings.TRAINING
    ).outputs
    assert delta.density <= 0.05
    patched = comfy.execute("SaRAApply", model=base.model, delta=delta, strength=1.0).outputs[0]
    return base._replace(model=patched)


def score(checkpoint, prefix):
    return evaluate.score(*evaluate.draw(checkpoint, prefix, count=200))


def test_the_base_draws_the_digit_it_is_asked_for(base):
    result = score(base, "")
    assert result.right >= 0.90 and result.styled == 0


def test_the_trigger_calls_the_style_and_the_right_digit(styled):
    result = score(styled, settings.STYLE)
    assert result.styled >= 0.90 and result.right >= 0.85


def test_without_the_trigger_the_style_stays_away(styled):
    assert score(styled, "").styled <= 0.10


def test_the_base_does_not_know_the_style(base):
    assert score(base, settings.STYLE).styled <= 0.10
