"""The models that a training goes through together: the diffusion model, and with it the text encoders of a CLIP."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from ....sara_core.names.text_encoders import TEXT_PREFIX

DIFFUSION_MODEL = "diffusion_model"
TEXT_ENCODERS = TEXT_PREFIX.rstrip(".")

# What people choose → the names of the parts whose weights are trained.
TRAINED = {
    "diffusion model": (DIFFUSION_MODEL,),
    "diffusion model and text encoders": (DIFFUSION_MODEL, TEXT_ENCODERS),
    "text encoders": (TEXT_ENCODERS,),
}


class Part(NamedTuple):
    """One of them.

    name: what a delta's names of its weights begin with; patcher: the host's, that loads it; module: what is trained
    """

    name: str
    patcher: object
    module: torch.nn.Module

    def has(self, name: str) -> bool:
        """Whether a weight of this name, in a delta, is one of this part's."""
        return name.startswith(f"{self.name}.")

    def key(self, name: str) -> str:
        """The host's key of a weight that has this name in a delta."""
        return name.removeprefix(TEXT_PREFIX)


def joined(parts: Iterable[Part]) -> torch.nn.Module:
    """A module that holds those of the parts, so that its parameters have a delta's names. It computes nothing."""
    whole = torch.nn.Module()
    for part in parts:
        whole.add_module(part.name, part.module)
    return whole
