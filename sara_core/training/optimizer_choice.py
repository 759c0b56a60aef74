"""The optimizers that a person can choose by name."""

import functools
import importlib

import torch

from ..errors import TrainingError

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


def optimizer_named(name: str) -> tuple[type[torch.optim.Optimizer], dict]:
    """Class and options of one of OPTIMIZERS.

    "AdamW 8-bit" keeps its moments in 8 bits, in blocks; they start anew when the support is adjusted.
    Raises TrainingError if none of the packages that have it is installed.
    """
    if name == ADAMW_8BIT:
        return _adamw_8bit(), {}
    return _CLASSES[name]


def follows_the_papers_rate(name: str) -> bool:
    """Whether the paper's learning-rate rule, found with AdamW, means anything for this optimizer: all but SGD scale
    their steps by the gradient's own size."""
    return name != "SGD"


@functools.cache
def _adamw_8bit():
    for module, name in _8BIT:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise TrainingError(
        f"{ADAMW_8BIT} needs the package bitsandbytes or torchao, and neither is installed in ComfyUI's Python. "
        "Choose AdamW, or install one of them (pip install bitsandbytes)."
    )
