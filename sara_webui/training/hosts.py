"""Which WebUI trains here, and its one runner."""

import functools
import importlib
import re

import torch

from sara_core.errors import TrainingError

from .. import hosts

NOTHING = "No training was started since the WebUI was."
# What came with it: AdamW in one pass on the CPU, and a loss scaler for every device.
OLDEST_TORCH = (2, 5)
# Name of a WebUI → where its class for training is, as a module of this package and a name in it.
_TRAINING = {
    "AUTOMATIC1111": ("a1111", "A1111Training"),
    "Forge": ("forge", "ForgeTraining"),
    "Forge Neo": ("forge", "ForgeTraining"),
    "reForge": ("older_forge", "OlderForgeTraining"),
    "Forge classic": ("older_forge", "OlderForgeTraining"),
    "SD.Next": ("sdnext", "SDNextTraining"),
}


def refusal() -> str | None:
    """A sentence if nothing can be trained in this WebUI, whatever is loaded; to be asked before `runner`."""
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < OLDEST_TORCH:
        return (
            f"Training needs torch {'.'.join(map(str, OLDEST_TORCH))} or newer, and this WebUI has "
            f"{torch.__version__}: update it, or train elsewhere and use the delta here."
        )
    host = hosts.current()
    if host is None:
        return "Training is not possible in this WebUI: train in ComfyUI, or with python -m sara_core train."
    return None


@functools.cache
def runner():
    """The runner.Runner of this WebUI. Raises TrainingError where `refusal` has something to say."""
    if reason := refusal():
        raise TrainingError(reason)
    # Older torches cannot import what trains.
    from .runner import Runner

    host = hosts.current()
    module, name = _TRAINING[host.name]
    return Runner(getattr(importlib.import_module(f".{module}", __package__), name)(host))
