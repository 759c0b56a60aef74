"""What a run of SaRA Train computes with: all that decides its numbers, and nothing that does not."""

import hashlib
import logging

import torch

from ....sara_core.errors import TrainingError
from ....sara_core.training.optimizer import learning_rate_for
from ....sara_core.training.optimizer_choice import follows_the_papers_rate
from ....sara_core.training.record import RunSettings
from .pairing import TrainingData

# Below this the paper's rule leaves a run of ordinary length without effect: θ is too large for it.
USELESS_LEARNING_RATE = 1e-6


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
