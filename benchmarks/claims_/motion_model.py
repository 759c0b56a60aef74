"""A small text-to-video model in Wan's layout (ComfyUI's own class), on pixels: 48 values of 4×4 pixels stand where
Wan 2.2's latents are, so nothing is lost on the way to a picture and back."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .motion_clips import FRAMES, SIZE

FILE = Path(__file__).resolve().parent / "motion.safetensors"
TEXT_WIDTH, WORDS = 64, 8
FOLD = 4  # pixels, each way, that one place of a latent holds
LATENT = (3 * FOLD**2, FRAMES, SIZE // FOLD, SIZE // FOLD)
# Two heads of 128: ComfyUI takes that for granted when it reads a file, and freq_dim too.
LAYOUT = {
    "model_type": "t2v", "in_dim": LATENT[0], "out_dim": LATENT[0], "dim": 256, "ffn_dim": 512, "freq_dim": 256,
    "num_heads": 2, "num_layers": 4, "text_dim": TEXT_WIDTH,
}  # fmt: skip
CONTRAST = 4.0  # white is 0 and black this
SHIFT = 2.0  # of the noise levels: most of a clip's motion is decided where there is much noise
TIMES = 1000
STEPS, GUIDANCE, TOGETHER = 12, 2.0, 20


def new(**layout) -> torch.nn.Module:
    """An untrained network of torch's own layers, LAYOUT or what `layout` says instead; from torch's seed."""
    from comfy.ldm.wan.model import WanModel

    model = WanModel(**{**LAYOUT, **layout}, operations=torch.nn, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("modulation"):
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    torch.nn.init.zeros_(model.head.head.weight)
    torch.nn.init.zeros_(model.head.head.bias)
    return model


def trained() -> torch.nn.Module:
    """The committed base, fp32."""
    from safetensors.torch import load_file

    model = new()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(FILE).items()})
    return model.eval()


def contexts(captions: Sequence[str]) -> torch.Tensor:
    """Captions as the network takes them, float [n, WORDS, TEXT_WIDTH]: a vector for each word, by its digest, and
    zeros behind. A caption of no words is what stands for no caption."""
    return torch.stack([_context(caption) for caption in captions])


@lru_cache(maxsize=4096)
def _context(caption: str) -> torch.Tensor:
    vectors = [_vector(word) for word in caption.split()]
    return torch.stack([*vectors, *[torch.zeros(TEXT_WIDTH)] * (WORDS - len(vectors))])


@lru_cache(maxsize=4096)
def _vector(word: str) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") >> 1
    return torch.randn(TEXT_WIDTH, generator=torch.Generator().manual_seed(seed))


def folded(frames: torch.Tensor) -> torch.Tensor:
    """Clips float [n, t, h, w, 3] in 0..1 → latents [n, 48, t, h / 4, w / 4]."""
    count, times = frames.shape[:2]
    ink = CONTRAST * (1 - frames).flatten(0, 1).permute(0, 3, 1, 2)
    return F.pixel_unshuffle(ink, FOLD).unflatten(0, (count, times)).transpose(1, 2)


def unfolded(latents: torch.Tensor) -> torch.Tensor:
    """The way back, within 0..1."""
    count, times = latents.shape[0], latents.shape[2]
    ink = F.pixel_shuffle(latents.transpose(1, 2).flatten(0, 1), FOLD) / CONTRAST
    return (1 - ink).clamp(0, 1).permute(0, 2, 3, 1).unflatten(0, (count, times))


def levels(u: torch.Tensor) -> torch.Tensor:
    """Numbers that are even in 0..1 → noise levels of a flow, 1 being noise alone."""
    return SHIFT * u / (1 + (SHIFT - 1) * u)


class Noised(NamedTuple):
    """noisy, flow [n, 48, t, h, w]: clips on their way to noise, and its direction; sigma [n]: how far they are"""

    noisy: torch.Tensor
    sigma: torch.Tensor
    flow: torch.Tensor


def noised(latents: torch.Tensor, generator: torch.Generator | None = None) -> Noised:
    """Clips [n, 48, t, h, w] at random levels of noise."""
    sigma = levels(torch.rand(len(latents), generator=generator))
    noise = torch.randn(latents.shape, generator=generator)
    return Noised(latents.lerp(noise, sigma.view(-1, 1, 1, 1, 1)), sigma, noise - latents)


def loss(model: torch.nn.Module, clips: Noised, given: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the predicted flow."""
    return (predict(model, clips.noisy, clips.sigma, given) - clips.flow).square().mean()


def predict(model: torch.nn.Module, noisy: torch.Tensor, sigma: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """The flow, fp32, of latents at levels [n] for contexts."""
    with torch.autocast("cpu", torch.bfloat16), _with_gradients():
        return model(noisy, sigma * TIMES, given).float()


@contextmanager
def _with_gradients() -> Iterator[None]:
    """ComfyUI's own kernel for rotary positions has none."""
    from comfy import model_management

    before = getattr(model_management, "in_training", False)
    model_management.in_training = True
    try:
        yield
    finally:
        model_management.in_training = before


@torch.no_grad()
def draw(model: torch.nn.Module, captions: Sequence[str], seed: int) -> torch.Tensor:
    """A clip of each caption, float [n, FRAMES, SIZE, SIZE, 3] in 0..1, by Euler's method with guidance; the same first
    noise for the same place and seed whatever the model."""
    noise = torch.randn(len(captions), *LATENT, generator=torch.Generator().manual_seed(seed))
    parts = zip(noise.split(TOGETHER), contexts(captions).split(TOGETHER))
    return torch.cat([unfolded(_flowed(model, first, given)) for first, given in parts])


def _flowed(model: torch.nn.Module, x: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    both = torch.cat([given, torch.zeros_like(given)])
    steps = levels(torch.linspace(1, 0, STEPS + 1)).tolist()
    for sigma, after in zip(steps, steps[1:]):
        with_text, without = predict(model, x.repeat(2, 1, 1, 1, 1), torch.full((len(both),), sigma), both).chunk(2)
        x = x + (after - sigma) * (without + GUIDANCE * (with_text - without))
    return x
