"""What a training asks of a WebUI, and of the model that the WebUI has loaded."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch


class TrainedModel(Protocol):
    """A loaded model, as long as `TrainingHost.ready` lasts.

    name: its file's; unet: its UNet, whose weights are in memory and may be written
    signal: ᾱ_t at each noise level, falling, fp32 [levels]; prediction: "eps" or "v", what the UNet predicts
    device: where it computes; is_half: whether it computes in fp16, whose gradients vanish unless the loss is scaled
    has_diffusers_names: whether its weights are called as in diffusers, not as in ComfyUI
    clip_skip: which layer of its text encoder captions are taken from, counted from the end
    patch: pixels along a side that one element of a latent stands for
    """

    name: str
    unet: torch.nn.Module
    signal: torch.Tensor
    prediction: str
    device: torch.device
    is_half: bool
    has_diffusers_names: bool
    clip_skip: int
    patch: int

    def latent(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        """What the VAE makes of a picture, scaled as the UNet sees it: fp32 [channels, height, width] on the CPU.

        pixels: fp32 [height, width, 3], 0 … 1; seed: of what the VAE draws, if it draws anything
        """

    def conditions(self, caption: str, size: tuple[int, int]) -> Mapping[str, torch.Tensor]:
        """What the UNet is told of a picture with this caption, without the batch dimension, on the CPU.

        size: width and height in pixels
        """

    def predict(
        self, unet: torch.nn.Module, noisy: torch.Tensor, timesteps: torch.Tensor,
        conditions: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:  # fmt: skip
        """What the UNet says of noisy latents [batch, channels, height, width] at these levels, int64 [batch]; with a
        graph where gradients are on.

        conditions: as `conditions` gives them, stacked
        """

    def picture(self, latent: torch.Tensor) -> torch.Tensor:
        """What the VAE makes of a latent [channels, height, width]: fp32 [height, width, 3] on the CPU, 0 … 1."""


class TrainingHost(Protocol):
    """A WebUI that can train.

    deltas: the folder that finished deltas are saved in; outputs: the folder that pictures and snapshots go in
    pictures: the folder whose folders hold pictures to train on, each to be called by its name
    """

    deltas: Path
    outputs: Path
    pictures: Path

    def loaded_unet(self) -> torch.nn.Module | None:
        """Of the model that is loaded; None while none is."""

    def working(self) -> AbstractContextManager[None]:
        """A block in which nothing else computes here; it may have to wait for what does."""

    def ready(self) -> AbstractContextManager[TrainedModel]:
        """A block that has the model of the chosen checkpoint, whichever was loaded before, without any network,
        extension or optimisation of the host's that is in the way of a gradient; afterwards all of it is as it was. To
        be entered inside `working`.

        Raises UnsupportedModelError for a model that cannot be trained, or not as the WebUI was started, and
        TrainingError where there is none."""

    def is_interrupted(self) -> bool:
        """Whether somebody has asked, by the host's own means, that what computes now should end."""

    def show_step(self, step: int, steps: int) -> None:
        """Let the host's own progress say where the run is."""

    def refresh(self) -> None:
        """Let the host list its deltas anew."""
