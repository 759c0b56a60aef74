"""Makes the host's MODEL of a case, with random weights."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from tests.support.family_models import random_state_dict

from .case import Case


def registered() -> list[type]:
    """The host's configuration classes, in the order in which it asks whether a file is theirs."""
    from comfy import supported_models

    return supported_models.models


def make_model(case: Case, config: type, seed: int = 0):
    """A MODEL (ModelPatcher) in fp32 of `config`, which is the case's own class or one derived from it."""
    from comfy import model_patcher

    own = getattr(config, "unet_config", None) or {}
    # Of the case's own class the case says the sizes; a derived one is told from it by its own unet_config.
    open_sizes = {name: size for name, size in case.layout.items() if config.__name__ == case.config or name not in own}
    settings = config({**own, **open_sizes})
    settings.unet_config.update(open_sizes)  # some classes write sizes of their own over what they are given
    settings.set_inference_dtype(torch.float32, None)
    generator = torch.Generator().manual_seed(seed)
    beside = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in case.beside.items()}
    with _smaller(case):
        model = settings.get_model(beside, "")
    model.diffusion_model.load_state_dict(random_state_dict(lambda: model.diffusion_model, seed))
    return model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


@contextmanager
def _smaller(case: Case) -> Iterator[None]:
    """While a network is made: sizes that no layout holds."""
    before = {place: getattr(importlib.import_module(place[0]), place[1]) for place in case.changed}
    try:
        for (module, name), keywords in case.changed.items():
            setattr(importlib.import_module(module), name, partial(before[module, name], **keywords))
        yield
    finally:
        for (module, name), own in before.items():
            setattr(importlib.import_module(module), name, own)
