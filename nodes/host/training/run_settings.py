"""What a run of SaRA Train computes with: all that decides its numbers, and nothing that does not."""

import hashlib
import logging
from dataclasses import dataclass

import torch

from ....sara_core.errors import TrainingError
from ....sara_core.selection.rules import RULES
from ....sara_core.training.optimizer import learning_rate_for
from ....sara_core.training.optimizer_choice import follows_the_papers_rate
from .pairing import TrainingData

# Below this the paper's rule leaves a run of ordinary length without effect: θ is too large for it.
USELESS_LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class RunSettings:
    """The inputs of the node under their names. Runs of equal settings over the same base are equal bit for bit on the
    CPU of one machine, and only such a run is resumed; what may differ (checkpointing, snapshots, pictures) is not
    here.

    selection: what was asked for, keyword of `select` → value; data: digest of images and captions
    """

    selection: dict
    layers: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    steps: int
    batch_size: int
    grad_accumulation: int
    optimizer: str
    learning_rate: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    low_rank_weight: float
    adjust_at: list[float]
    noise_levels: str
    noise_level_mean: float
    noise_level_std: float
    min_snr_gamma: float
    caption_dropout: float
    prior_weight: float
    seed: int
    data: str

    def adjust_after_steps(self) -> tuple[int, ...]:
        """The steps after which the support is adjusted."""
        return tuple(round(part * self.steps) for part in self.adjust_at)


def selection_asked_for(inputs: dict) -> dict:
    """The keywords of `select` that the node's inputs mean, and their values."""
    amount, rule = inputs["select_by"], inputs["selection_rule"]
    selection = {"rule": rule, amount: inputs[amount] / 100 if amount == "density" else inputs[amount]}
    if inputs["per_layer"]:
        selection["per_layer"] = True
    if RULES[rule].takes_seed:
        selection["seed"] = inputs["seed"]
    return selection


def learning_rate(settings: RunSettings, theta: float | None) -> float:
    """The rate that was asked for, or with 0 the paper's for the θ of the selection.

    Raises TrainingError for an optimizer that the paper's rule says nothing about.
    """
    if settings.learning_rate:
        return settings.learning_rate
    if not follows_the_papers_rate(settings.optimizer):
        raise TrainingError(
            f"The paper's learning rate is for optimizers of Adam's kind: set learning_rate for {settings.optimizer} "
            "(0.1 is a start), or choose AdamW."
        )
    rate = learning_rate_for(theta)
    if rate < USELESS_LEARNING_RATE:
        logging.warning(
            f"SaRA: the paper's rule gives a learning rate of {rate:.1e} for weights up to {theta:.3g}, too low to "
            "learn anything. Lower the density, or set learning_rate (1e-4 to 1e-3)."
        )
    return rate


def parts_of_a_run(text: str) -> list[float]:
    """"0.5" or "0.3, 0.6" → the numbers, each above 0 and below 1. Raises TrainingError for anything else."""
    try:
        parts = sorted(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        parts = [0.0]
    if not all(0 < part < 1 for part in parts):
        raise TrainingError(
            f"adjust_at is '{text}': it takes parts of the run between 0 and 1, like 0.5 for the middle, separated by "
            "commas; empty switches the adjustment off."
        )
    return parts


def digest(data: TrainingData) -> str:
    """Identity of the images and captions, in their order: hex digest of all that they are made of."""
    result = hashlib.blake2b(digest_size=16)
    sets = [pairs for pairs in (data.images, data.class_images) if pairs]
    _add(result, [[pairs.images, pairs.captions] for pairs in sets] + [data.unconditional])
    return result.hexdigest()


def _add(result, value) -> None:
    if isinstance(value, torch.Tensor):
        result.update(repr(tuple(value.shape)).encode())
        result.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        _add(result, sorted(value.items(), key=lambda item: str(item[0])))
    elif isinstance(value, (list, tuple)):
        for item in value:
            _add(result, item)
    elif isinstance(value, (str, int, float, bool, type(None))):
        result.update(repr(value).encode())
