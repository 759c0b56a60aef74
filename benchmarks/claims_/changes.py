"""What a training did to the base's weights, as one change for each: scaled, added to others, merged."""

from collections.abc import Mapping

import torch

Changes = dict[str, torch.Tensor]


def changes_of(model: torch.nn.Module, base: torch.nn.Module) -> Changes:
    """Weight name → change, fp32 of the weight's shape, of every weight that a trained model differs in.

    A LoRA's product counts as a change of its layer's weight. Raises ValueError for what is no change of weights, as
    AdaptFormer's branches.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    from sara_core.training.optimizer import PARAMETER_NAME

    before, found = dict(base.named_parameters()), {}
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, layer in adapted.items():
        (adapter,) = layer.active_adapters
        found[f"{name}.weight"] = layer.get_delta_weight(adapter).detach().float()
    for name, parameter in model.named_parameters():
        if name == PARAMETER_NAME or any(name.startswith(f"{layer}.") for layer in adapted):
            continue
        if name not in before:
            raise ValueError(f"{name} is no weight of the base")
        change = (parameter.detach() - before[name]).float()
        if change.any():
            found[name] = change
    return found


@torch.no_grad()
def add(model: torch.nn.Module, changes: Mapping[str, torch.Tensor], strength: float = 1.0) -> torch.nn.Module:
    """The model itself, its weights changed in place by `strength` times the changes."""
    weights = dict(model.named_parameters())
    for name, change in changes.items():
        weights[name].add_(change.to(weights[name].device), alpha=strength)
    return model


def sparse(changes: Mapping[str, torch.Tensor]):
    """A SparseDelta of the elements that are not 0, on the CPU."""
    from sara_core import SparseDelta, SparseEntry

    entries = {}
    for name, change in changes.items():
        flat = change.flatten().cpu()
        indices = flat.nonzero().view(-1)
        entries[name] = SparseEntry(indices.to(torch.int32), flat[indices], tuple(change.shape))
    return SparseDelta(entries)


def dense(delta) -> Changes:
    """The other way round."""
    from sara_core.delta.entry import dense as dense_entry

    return {name: dense_entry(entry).float() for name, entry in delta.entries.items()}
