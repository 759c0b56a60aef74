"""Training a model whose weights do not fit the device it computes on.

The weights of Linear and Conv layers rest where they are, usually in the main memory, and pass through the device one
layer at a time: each forward and each backward of a layer makes a copy there, adds Δ to it and forgets it. Whatever
else the model has (biases, norms, embeddings, buffers: a few MB) moves to the device, and so do Δ, its moments and
its positions, which stay there. The resting weights are never written while the model trains.
"""

from collections.abc import Iterable

import torch


def move_all_but(
    model: torch.nn.Module, resting: Iterable[torch.nn.Module], device: torch.device | str
) -> list[tuple]:
    """Replace every parameter and buffer by one on `device`, but for the weights of the modules `resting`. Those that
    are tied stay so.

    Returns what `move_back` needs.
    """
    stays = {id(module.weight) for module in resting}
    replaced, moved = [], {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or id(tensor) in stays or tensor.device == torch.device(device):
                    continue
                if id(tensor) not in moved:
                    moved[id(tensor)] = _on(tensor, device)
                replaced.append((tensors, name, tensor))
                tensors[name] = moved[id(tensor)]
    return replaced


def _on(tensor, device):
    there = tensor.detach().to(device)
    return torch.nn.Parameter(there, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else there


def move_back(replaced: list[tuple]) -> None:
    """Undo `move_all_but`: every parameter and buffer is the object that it was."""
    for tensors, name, tensor in replaced:
        tensors[name] = tensor
