"""Pictures and sounds while a model trains: fixed captions, seeds and noise, sampled by the host with the weights as
they are.

Nothing of it may show in the training: the random numbers of the process are put back, and the weights are written
again, because a VAE that is loaded in between may have driven the model out of memory.
"""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import comfy.sample
import torch

from ....sara_core.errors import TrainingError
from ....sara_core.files import atomic
from .memories import nothing_kept
from .previews import Preview, preview

# The side of what a latent's one element becomes, in every usual VAE or less.
PIXELS = 16
# Bytes of a sound that a latent's one moment becomes, in every usual VAE or less: in two channels of 16 bits.
SOUND_BYTES = 4096 * 2 * 2
SAMPLER, SCHEDULER = "euler", "normal"


@dataclass(frozen=True)
class SampleSettings:
    """positive, negative: CONDITIONING entries, one picture for each of `positive`; without negative, guidance is off
    vae: decodes the pictures; every: they are drawn after so many training steps
    steps, cfg, seed: of the sampling; size: of a latent as the VAE makes it, [channels, …]
    captions: of the pictures, as far as they are known
    """

    positive: list
    negative: list | None
    vae: object
    every: int
    steps: int
    cfg: float
    seed: int
    size: tuple[int, ...]
    captions: tuple[str, ...] = ()


class Samples:
    """Draws the pictures of a run and keeps them as <folder>/step_<number>_<caption>.png; sounds, as .wav."""

    def __init__(self, training, settings: SampleSettings, folder: Path):
        """Raises TrainingError if the VAE is another kind of model's."""
        self.training, self.settings, self.folder = training, settings, folder
        if settings.vae.latent_channels != settings.size[0]:
            raise TrainingError(
                f"The VAE of SaRA Train Samples decodes {settings.vae.latent_channels} channels, the training latents "
                f"have {settings.size[0]}: connect the VAE that the images were encoded with."
            )

    def disk_bytes(self, steps: int) -> int:
        """How much all pictures of a run of so many steps take at most, packed not at all."""
        settings = self.settings
        largest = max(math.prod(settings.size[-2:]) * PIXELS**2 * 3, settings.size[-1] * SOUND_BYTES)
        return len(settings.positive) * (1 + steps // settings.every) * largest

    @property
    def captions(self) -> list[str]:
        """One for each picture; empty where it is not known."""
        known = self.settings.captions
        return list(known) if len(known) == len(self.settings.positive) else [""] * len(self.settings.positive)

    def is_due(self, step: int) -> bool:
        return step % self.settings.every == 0

    def draw(self) -> list[Preview]:
        """One picture or sound of each caption. Raises TrainingError if what the VAE gives is neither. Afterwards, even
        if it raises, `training` must be reloaded before it goes on."""
        with torch.random.fork_rng(), torch.inference_mode():  # in which the host moves models and its VAEs run
            return [self._drawn(number) for number in range(len(self.settings.positive))]

    def save(self, step: int, drawn: list[Preview]) -> list[Path]:
        """Keep what was drawn after `step`; returns the files. Raises DeltaError if one cannot be written."""
        with contextlib.suppress(OSError):  # the files' own error is the better one
            self.folder.mkdir(parents=True, exist_ok=True)
        paths = [self.folder / f"step_{step:07}_{number:02}{one.suffix}" for number, one in enumerate(drawn, 1)]
        for path, one in zip(paths, drawn):
            with atomic.replacing(path) as file:
                file.write(one.content)
        return paths

    def _drawn(self, number: int) -> Preview:
        settings, patcher = self.settings, self.training.patcher
        positive = [settings.positive[number]]
        negative, cfg = (settings.negative, settings.cfg) if settings.negative else (positive, 1.0)
        latent = torch.zeros(1, *settings.size)
        noise = comfy.sample.prepare_noise(latent, settings.seed + number)
        with nothing_kept(patcher.model.diffusion_model):
            latent = comfy.sample.sample(
                patcher, noise, settings.steps, cfg, SAMPLER, SCHEDULER, positive, negative, latent,
                disable_pbar=True, seed=settings.seed + number,
            )  # fmt: skip
        vae = settings.vae
        decoded = vae.decode(latent)
        rate = getattr(vae, "audio_sample_rate_output", getattr(vae, "audio_sample_rate", 44100))
        return preview(decoded, rate)
