"""The values of a MODEL's trained weights, for choosing elements and as what Δ is added to: quantised ones dequantised.

Each is made anew when it is asked for, on the device that computes, and kept by nobody: no more than one weight is ever
there in full.
"""

from collections.abc import Mapping, Sequence

import torch

from ....sara_core.backward.parameters import ParameterOf
from ....sara_core.selection.one_at_a_time import OneAtATime
from ..base_weights import base_weight
from ..precision import dequantised_weight, is_known
from .parts import Part
from .weights import HostWeight, is_packed


class Dequantised:
    """A WeightHolder (sara_core/backward/store.py) of a quantised weight.

    holder: the layer that has it, or a ParameterOf; device: where it is dequantised
    """

    def __init__(self, holder, device: torch.device):
        self.holder, self.device = holder, device

    @property
    def weight(self) -> torch.Tensor:
        """A new tensor, fp32, of the shape that the weight has when it is dequantised, with the MODEL's patches as far
        as the host has written them into it."""
        return _dequantised(self.holder, self.holder.weight, self.device)


def read_by_store(holder, device: torch.device):
    """What a store is to read base values from: `holder`, or what dequantises its weight."""
    return Dequantised(holder, device) if is_packed(holder.weight) else holder


def base_weights_of(parts: Sequence[Part], holders: Mapping) -> Mapping[str, torch.Tensor]:
    """The trained weights of models without the patches that the host has written into them, by a delta's names: each
    the tensor itself, or of a quantised one a new tensor, in fp32.

    parts: that the weights are of; holders: name → what has the weight, as from `trainable_weights`
    """

    def base_of(name: str) -> torch.Tensor:
        holder = holders[name]
        part = next(part for part in parts if part.has(name))
        weight = base_weight(part.patcher, part.key(name), holder.weight)
        return _dequantised(holder, weight, part.patcher.load_device) if is_packed(weight) else weight

    return OneAtATime(holders, base_of)


def _dequantised(holder, weight, device) -> torch.Tensor:
    module, name = (holder.module, holder.name) if isinstance(holder, ParameterOf) else (holder, "weight")
    if is_known(weight) or isinstance(holder, ParameterOf):
        return dequantised_weight(module, name, weight, torch.float32, device)
    with torch.no_grad(), HostWeight().tensors(module, torch.empty(0, device=device)) as (weight, _):
        return weight.clone()
