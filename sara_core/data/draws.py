"""Which samples, noise levels and noise the next batch has: every random choice of a training, from one seed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..errors import TrainingError
from ..files.saved_state import LARGEST_COUNT, fields, generator_state, sequence, whole_number
from .epochs import BucketSampler
from .noise_levels import NoiseLevels


class Draw(NamedTuple):
    """sample: with the caption it is trained with this time; level: position of its noise level in the model's table;
    noise: fp32 on the CPU, of the shape of the sample's latent"""

    sample: Any
    level: int
    noise: torch.Tensor


class Draws:
    """The random choices over one set of samples. All numbers are drawn on the CPU, so that a seed means the same on
    every device.

    samples: each with its `latent`; with `without_caption()`, the same under the empty caption, if captions are dropped
    levels: those of the model's noise levels that are drawn, by their positions; how many it has, if it is all of them
    caption_dropout: part of the samples, 0 … 1, that are drawn without their caption
    """

    def __init__(
        self, samples: Sequence, batch_size: int, seed: int, levels: int | range,
        noise_levels: NoiseLevels = NoiseLevels(), caption_dropout: float = 0.0,
    ):
        self.samples, self.noise_levels = samples, noise_levels
        self.levels = levels if isinstance(levels, range) else range(levels)
        self.caption_dropout = caption_dropout
        self.generator = torch.Generator().manual_seed(seed)
        self.epochs = BucketSampler([sample.latent.shape for sample in samples], batch_size, self.generator)

    def next_batch(self) -> list[Draw]:
        """One by one, so that a batch draws what as many batches of one sample would."""
        return [self._draw(self.samples[number]) for number in self.epochs.next_batch()]

    def _draw(self, sample) -> Draw:
        if self.caption_dropout and torch.rand(1, generator=self.generator).item() < self.caption_dropout:
            sample = sample.without_caption()
        level = self.levels[self.noise_levels.draw(len(self.levels), self.generator)]
        return Draw(sample, level, torch.randn(sample.latent.shape, generator=self.generator))

    def state(self) -> dict:
        """What the coming draws depend on: numbers, a list of numbers, and the generator's state, uint8 [n]."""
        return {
            "samples": len(self.samples), "queue": list(self.epochs.queue), "generator": self.generator.get_state(),
        }

    def check_state(self, state: dict) -> None:
        """Raises DeltaError for a damaged state, TrainingError for one of another number of samples."""
        fields(state, "the order of its images", ("samples", "queue", "generator"))
        samples = whole_number(state["samples"], "its number of images", 1, LARGEST_COUNT)
        if samples != len(self.samples):
            raise TrainingError(
                f"The training to be resumed had {samples} images, now there are {len(self.samples)}: give it "
                "the same images, or start a new training."
            )
        for number in sequence(state["queue"], "the order of its images"):
            whole_number(number, "a place in the order of its images", 0, samples - 1)
        generator_state(state["generator"], "the state of its random generator")

    def load_state(self, state: dict) -> None:
        """Go on where `state` was taken. Raises what `check_state` raises."""
        self.check_state(state)
        self.epochs.queue = list(state["queue"])
        self.generator.set_state(state["generator"].cpu())
