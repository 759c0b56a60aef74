"""Gradient checkpointing of a model's blocks: their activations are recomputed in the backward instead of kept."""

import torch
from torch.utils.checkpoint import checkpoint

from ...sara_core.backprop import is_attached

CONTAINERS = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential)


def blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules worth checkpointing: the outermost with at least two trained or frozen layers that are no mere
    containers and hold no list of further blocks (residual blocks and transformer blocks, in every family)."""
    found = []

    def descend(module):
        for child in module.children():
            holds_blocks = any(isinstance(m, (torch.nn.ModuleList, torch.nn.ModuleDict)) for m in child.modules())
            if isinstance(child, CONTAINERS) or holds_blocks:
                descend(child)
            elif sum(is_attached(m) for m in child.modules()) > 1:
                found.append(child)

    descend(model)
    return found


def install(module: torch.nn.Module):
    """Checkpoint one block; returns a function that undoes it. Attach sparse layers before, detach them after."""
    overridden = module.__dict__.get("forward")
    original = module.forward

    def forward(*args, **kwargs):
        if not torch.is_grad_enabled():
            return original(*args, **kwargs)
        # Blocks read and write shared option dictionaries as they go; the recomputation must see them as they were.
        args = [_copied(value) for value in args]
        kwargs = {name: _copied(value) for name, value in kwargs.items()}

        def run(*args, **kwargs):
            return original(*map(_copied, args), **{name: _copied(value) for name, value in kwargs.items()})

        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    module.forward = forward

    def undo():
        if overridden is None:
            del module.forward
        else:
            module.forward = overridden

    return undo


def _copied(value):
    return dict(value) if isinstance(value, dict) else value
