"""A MODEL's weights without the patches (LoRAs …) that the host has written into them while the model is loaded.

The host keeps what it overwrites in `model.backup`.
"""

import torch


def base_weight(model, key: str, weight: torch.Tensor) -> torch.Tensor:
    """The weight of this key as it is without patches; `weight`, which the module has, where the host kept none."""
    return model.backup[key].weight if key in model.backup else weight


def base_weights(model) -> dict[str, torch.Tensor]:
    """All weights of a MODEL, by the host's keys."""
    return {key: base_weight(model, key, weight) for key, weight in model.model_state_dict().items()}
