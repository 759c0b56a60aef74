"""The paper's premise, that a model's smallest weights do nothing: they are set to 0, beside other choices."""

from collections.abc import Sequence

import torch

from . import methods

SHARES = (0.0058, 0.023, 0.058, 0.12, 0.25)
CHOICES = ("smallest", "just above", "random")


@torch.no_grad()
def zero(
    model: torch.nn.Module, share: float, chosen: str, names: Sequence[str] | None = None, seed: int = 0
) -> tuple[float, int]:
    """Set a share of the weights of Linear and convolution layers to 0, in place.

    chosen: "smallest" in absolute value over all of them; "just above": as many, the next in size; "random"
    names: of the layers, by default all; the share is of their weights
    Returns the size of the largest weight that is now 0, and how many are.
    """
    found = methods.layers(model)
    weights = [found[name].weight for name in (names if names is not None else found)]
    flat = torch.cat([weight.flatten().abs() for weight in weights])
    count = round(share * len(flat))
    if chosen == "random":
        places = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))[:count].to(flat.device)
    else:
        order = flat.argsort()
        places = order[:count] if chosen == "smallest" else order[count : 2 * count]
    is_chosen = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    is_chosen[places] = True
    for weight, own in zip(weights, is_chosen.split([weight.numel() for weight in weights])):
        weight.masked_fill_(own.view(weight.shape), 0)
    return flat[places].max().item(), count
