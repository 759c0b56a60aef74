"""A training of a diffusers model on captioned images: the loss of its batches, and the run with its settings."""

import json
from dataclasses import asdict, dataclass

import torch

from ..data.draws import Draws
from ..delta import SparseDelta
from ..delta import metadata as keys
from ..diffusers_bridge import comfyui_delta, identity_metadata
from ..training.loop import Training, TrainingSettings
from ..training.low_rank import LowRankLoss
from ..training.optimizer import SaRA
from ..training.processes import Processes
from .prepare import Prepared

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


class DenoisingLoss:
    """Losses of one batch after the other: the mean squared error of what the network predicts.

    Every process draws the batch of all from the same seed and computes its own part, so that the losses' mean does
    not depend on how many share it.
    """

    def __init__(self, prepared: Prepared, settings: RunSettings, processes: Processes):
        self.model, self.family, self.noising = prepared.model, prepared.family, prepared.noising
        self.processes, self.dtype = processes, DTYPES[settings.dtype]
        self.draws = Draws(prepared.samples, settings.batch_size, settings.seed, self.noising.levels)

    def __call__(self) -> torch.Tensor:
        """Loss of this process's part of the next batch, fp32 scalar with graph."""
        own = self.draws.next_batch()[self.processes.rank::self.processes.count]
        device, samples = self.processes.device, [draw.sample for draw in own]
        clean = torch.stack([sample.latent for sample in samples]).to(device)
        noise = torch.stack([draw.noise for draw in own]).to(device)
        level = torch.tensor([draw.level for draw in own], device=device)
        conditions = {
            name: self._as_input(torch.stack([sample.conditions[name] for sample in samples]))
            for name in samples[0].conditions
        }
        noisy = self._as_input(self.noising.noisy(clean, noise, level))
        predicted = self.family.predict(self.model, noisy, self.noising.timesteps(level), conditions)
        return torch.nn.functional.mse_loss(predicted.float(), self.noising.target(clean, noise, level))

    def _as_input(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.processes.device, self.dtype if tensor.is_floating_point() else None)

    def state(self) -> dict:
        """What the coming batches depend on (Draws.state), to be taken between two batches."""
        return self.draws.state()

    def check_state(self, state: dict) -> None:
        """Raises DeltaError for a damaged state, TrainingError for one of another number of samples."""
        self.draws.check_state(state)

    def load_state(self, state: dict) -> None:
        """Go on where `state` was taken, with the same samples. Raises what `check_state` raises."""
        self.draws.load_state(state)


class DiffusersRun:
    """One training of a prepared model; `training` is its loop.

    checkpointing: recompute activations in the backward; stream: leave the weights in the main memory and let them
        pass through the device one layer at a time (backward/streaming.py). Neither decides the run's numbers, up to
        their last bits.

    Raises SelectionError if the selection is impossible, UnsupportedModelError for a model that cannot be trained.
    """

    def __init__(
        self, prepared: Prepared, settings: RunSettings, processes: Processes, checkpointing: bool = False,
        stream: bool = False,
    ):
        self.settings, self.images = settings, len(prepared.samples)
        self.base = identity_metadata(prepared.model, prepared.name)  # now, as long as Δ is 0
        self.model = prepared.model if stream else prepared.model.to(processes.device)
        if settings.dtype != "float32":  # diffusers warns of every cast
            self.model.to(DTYPES[settings.dtype])
        if checkpointing:
            self.model.enable_gradient_checkpointing()
        self.optimizer = SaRA(
            self.model, **settings.selection, lr=settings.learning_rate,
            stream_to=processes.device if stream else None,
        )  # fmt: skip
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
            keys.SELECTION: json.dumps(selected),
            keys.TRAINING: json.dumps(trained),
            keys.BASE: store.base_fingerprint,
            **self.base,
        }
        return comfyui_delta(self.model, store.delta(metadata))
