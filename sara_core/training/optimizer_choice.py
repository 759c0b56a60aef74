"""The optimizers that a person can choose by name."""

import functools
import importlib
from typing import Any, NamedTuple, Protocol

import torch

from ..errors import TrainingError
from ..wording import Sentence
from .words import Words

ADAMW_8BIT = "AdamW 8-bit"
# Without momentum, SGD learns nothing in a run of ordinary length.
_MOMENTUM = {"momentum": 0.9}
_CLASSES = {
    "AdamW": (torch.optim.AdamW, {}),
    "Adam": (torch.optim.Adam, {}),
    "SGD": (torch.optim.SGD, _MOMENTUM),
    "Adafactor": (torch.optim.Adafactor, {}),
}
# (module, class) of implementations with 8-bit moments, in order of preference
_8BIT = (("bitsandbytes.optim", "AdamW8bit"), ("torchao.optim", "AdamW8bit"))
OPTIMIZERS = (*_CLASSES, ADAMW_8BIT)


class OptimizerSettings(Protocol):
    """Of a run's settings (record.RunSettings) those that are looked at here."""

    optimizer: str
    learning_rate: float
    weight_decay: float


class ChosenOptimizer(NamedTuple):
    """An optimizer, as `SaRA` and `make_inner` take it.

    lr: None = the paper's, for the θ of the selection; options: for the class, beside the learning rate
    """

    kind: type[torch.optim.Optimizer]
    lr: float | None
    options: dict[str, Any]


def chosen_optimizer(settings: OptimizerSettings, words: Words = Words()) -> ChosenOptimizer:
    """The optimizer of a run's settings, which can be asked for before there is a model.

    Raises TrainingError if it is not installed, or is one that the paper's learning rate is not for and is given none.
    """
    if not settings.learning_rate and not follows_the_papers_rate(settings.optimizer):
        raise TrainingError(Sentence(
            "The paper's learning rate is for optimizers of Adam's kind: set {setting} for {optimizer} (0.1 is a "
            "start), or choose AdamW.", setting=words.setting("learning_rate"), optimizer=settings.optimizer,
        ))  # fmt: skip
    kind, options = optimizer_named(settings.optimizer, words)
    return ChosenOptimizer(kind, settings.learning_rate or None, {**options, "weight_decay": settings.weight_decay})


def optimizer_named(name: str, words: Words = Words()) -> tuple[type[torch.optim.Optimizer], dict]:
    """Class and options of one of OPTIMIZERS.

    "AdamW 8-bit" keeps its moments in 8 bits, in blocks; they start anew when the support is adjusted.
    Raises TrainingError if none of the packages that have it is installed.
    """
    if name != ADAMW_8BIT:
        return _CLASSES[name]
    kind = _adamw_8bit()
    if kind is None:
        raise TrainingError(Sentence(
            "{optimizer} needs the package bitsandbytes or torchao, and neither is installed in {python}. Choose "
            "AdamW, or install one of them (pip install bitsandbytes).", optimizer=ADAMW_8BIT, python=words.python,
        ))  # fmt: skip
    return kind, {}


def follows_the_papers_rate(name: str) -> bool:
    """Whether the paper's learning-rate rule, found with AdamW, means anything for this optimizer: all but SGD scale
    their steps by the gradient's own size."""
    return name != "SGD"


@functools.cache
def _adamw_8bit() -> type[torch.optim.Optimizer] | None:
    for module, name in _8BIT:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    return None
