"""A training of a diffusers UNet on captioned images: the loss of its batches, and the run with its settings."""

import json
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch

from .delta import SparseDelta
from .diffusers_bridge import Prepared, Sample, comfyui_delta
from .epochs import ShuffledEpochs
from .errors import TrainingError
from .low_rank import LowRankLoss
from .noise_levels import NoiseLevels
from .optimizer import SaRA
from .processes import Processes
from .training import Training, TrainingSettings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class RunSettings:
    """What decides a run's numbers. Only a run of equal settings is resumed; how many processes share its batches does
    not matter.

    selection: keyword of `select` → value; batch_size: images per forward pass, over all processes together
    learning_rate: None = the paper's rule; adjust_at: part of the run after which the support is adjusted, 0 = never
    data: digest of images and captions
    """

    selection: dict
    steps: int
    batch_size: int
    accumulation: int
    learning_rate: float | None
    low_rank_weight: float
    adjust_at: float
    resolution: int
    dtype: str
    seed: int
    data: str


class Draw(NamedTuple):
    """sample: one of the images; level: number of its noise level; noise: fp32 on the CPU, of its latent's shape"""

    sample: Sample
    level: int
    noise: torch.Tensor


class DenoisingLoss:
    """Losses of one batch after the other: the mean squared error of the noise, or velocity, that the UNet predicts.

    Every process draws the batch of all from the same seed and computes its own part, so that the losses' mean does
    not depend on how many share it. All numbers are drawn on the CPU.
    """

    def __init__(self, prepared: Prepared, settings: RunSettings, processes: Processes):
        self.unet, self.schedule, self.samples = prepared
        self.processes, self.dtype = processes, DTYPES[settings.dtype]
        self.generator = torch.Generator().manual_seed(settings.seed)
        shapes = [sample.latent.shape for sample in self.samples]
        self.epochs = ShuffledEpochs(shapes, settings.batch_size, self.generator)

    def __call__(self) -> torch.Tensor:
        """Loss of this process's part of the next batch, fp32 scalar with graph."""
        draws = [self._draw(self.samples[number]) for number in self.epochs.next_batch()]
        own = draws[self.processes.rank::self.processes.count]
        device, dtype = self.processes.device, self.dtype
        clean = torch.stack([draw.sample.latent for draw in own]).to(device)
        noise = torch.stack([draw.noise for draw in own]).to(device)
        level = torch.tensor([draw.level for draw in own], device=device)
        text = torch.stack([draw.sample.text for draw in own]).to(device, dtype)
        noisy = self.schedule.add_noise(clean, noise, level).to(dtype)
        predicted = self.unet(noisy, level, encoder_hidden_states=text).sample
        return torch.nn.functional.mse_loss(predicted.float(), self._target(clean, noise, level))

    def _target(self, clean, noise, level) -> torch.Tensor:
        is_velocity = self.schedule.config.prediction_type == "v_prediction"
        return self.schedule.get_velocity(clean, noise, level) if is_velocity else noise

    def _draw(self, sample: Sample) -> Draw:
        level = NoiseLevels().draw(self.schedule.config.num_train_timesteps, self.generator)
        return Draw(sample, level, torch.randn(sample.latent.shape, generator=self.generator))

    def state(self) -> dict:
        """What the coming batches depend on: a list of numbers, and the generator's state, uint8 [n]."""
        return {"queue": list(self.epochs.queue), "generator": self.generator.get_state()}

    def load_state(self, state: dict) -> None:
        """Go on where `state` was taken, with the same samples; TrainingError if it is damaged."""
        if not set(state["queue"]) <= set(range(len(self.samples))):
            raise TrainingError("The order of images in the snapshot is damaged: choose an earlier snapshot.")
        self.epochs.queue = list(state["queue"])
        self.generator.set_state(state["generator"])


class DiffusersRun:
    """One training of a prepared UNet; `training` is its loop.

    Raises SelectionError if the selection is impossible, UnsupportedModelError for a model that cannot be trained.
    """

    def __init__(self, prepared: Prepared, settings: RunSettings, processes: Processes, checkpointing: bool = False):
        self.settings, self.images = settings, len(prepared.samples)
        self.unet = prepared.unet.to(processes.device)
        if settings.dtype != "float32":  # diffusers warns of every cast
            self.unet.to(DTYPES[settings.dtype])
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.optimizer = SaRA(self.unet, **settings.selection, lr=settings.learning_rate)
        self.learning_rate = self.optimizer.param_groups[0]["lr"]
        store, theta = self.optimizer.store, self.optimizer.selection.theta
        low_rank = None
        if settings.low_rank_weight:
            per_step = settings.batch_size * settings.accumulation
            low_rank = LowRankLoss(store, settings.low_rank_weight, settings.seed, per_step)
        adjust_at = (round(settings.adjust_at * settings.steps),) if settings.adjust_at else ()
        self.training = Training(
            store, self.optimizer.inner, DenoisingLoss(prepared, settings, processes),
            TrainingSettings(settings.steps, settings.accumulation, adjust_at=adjust_at, theta=theta),
            low_rank, average=processes.average_ if processes.count > 1 else None,
        )  # fmt: skip

    def delta(self) -> SparseDelta:
        """What was trained so far, with ComfyUI's names and the metadata that SaRA Train writes too."""
        selection, store = self.optimizer.selection, self.optimizer.store
        selected = {**selection.rule, "theta": selection.theta, "elements": selection.count, "of": selection.candidates}
        trained = {
            **asdict(self.settings), "learning_rate": self.learning_rate, "steps": self.training.step,
            "images": self.images,
        }  # fmt: skip
        metadata = {
            "sara.selection": json.dumps(selected),
            "sara.training": json.dumps(trained),
            "sara.base": store.base_fingerprint,
        }
        return comfyui_delta(self.unet, store.delta(metadata))
