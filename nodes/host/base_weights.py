"""A MODEL's weights without the patches (LoRAs …) that the host has written into them while the model is loaded.

The host keeps what it overwrites in `model.backup`: the weight, or of one that was changed in place its elements.
"""

from collections.abc import Iterator, Mapping

import torch

from ...sara_core.selection.one_at_a_time import OneAtATime
from .loading.kept import KeptElements


def base_weight(model, key: str, weight: torch.Tensor) -> torch.Tensor:
    """The weight of this key as it is without patches; `weight`, which the module has, where the host kept none. Of one
    that was changed in place it is a copy, for the caller alone."""
    return model.backup[key].weight if key in model.backup else weight


def base_weights(model) -> Mapping[str, torch.Tensor]:
    """All weights of a MODEL, by the host's keys."""
    weights = model.model_state_dict()
    return OneAtATime(weights, lambda key: base_weight(model, key, weights[key]))


def kept_elements(model, key: str) -> KeptElements | None:
    """What reads single elements of a weight that was changed in place as they are without patches."""
    kept = model.backup.get(key)
    return kept if isinstance(kept, KeptElements) else None


def kept_by_host(model) -> Iterator[torch.Tensor]:
    """The tensors that the host keeps beside the loaded model, to take patches off again."""
    for kept in model.backup.values():
        if isinstance(kept, KeptElements):
            yield from kept.base
        else:
            yield getattr(kept, "weight", kept)
