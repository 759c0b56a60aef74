"""A UNet with weights of our own for the time of a training, where the host's can be part of no gradient.

Models that were loaded, or moved, in inference mode have inference tensors, which no graph may keep: what is trained is
a copy, put in their place for that time; the host's own are what comes back.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

# Its forward adds into its own input, which gradient checkpointing computes it from again.
_BLOCK = "BasicTransformerBlock"


@contextmanager
def own_weights(
    unet: torch.nn.Module, device: torch.device, operations: str | None = None
) -> Iterator[torch.nn.Module]:
    """The UNet with weights and layers that gradients go through, and afterwards with the host's own again.

    operations: the module of the host's own classes of layers, if it has any, which compute with casts of their weights
    """
    with ExitStack() as undo:
        for module in unet.modules():
            for tensors in (module._parameters, module._buffers):
                undo.callback(tensors.update, dict(tensors))
                for name, tensor in tensors.items():
                    tensors[name] = _normal(tensor, device)
            undo.callback(setattr, module, "__class__", type(module))
            module.__class__ = _plain_class(type(module), operations)
            if isinstance(module, torch.nn.LayerNorm):
                undo.callback(module.register_forward_pre_hook(_kept_apart).remove)
        yield unet


@torch.no_grad()
def own(tensor: torch.Tensor) -> torch.Tensor:
    """As fp32 on the CPU, for a graph."""
    return tensor.to("cpu", torch.float32, copy=True)


@torch.no_grad()
def _normal(tensor: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    if tensor is None:
        return None
    copied = tensor.detach().to(device, copy=True)
    return torch.nn.Parameter(copied, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else copied


def _plain_class(kind: type, operations: str | None) -> type:
    """torch's own class, of whose weights the host's casts copies in ways of its own; of a block one that keeps its
    input."""
    if operations is None:
        return kind
    if kind.__name__ == _BLOCK:
        return _with_its_own_input(kind)
    # By its name: Forge's Linear is no subclass of torch's.
    return getattr(torch.nn, kind.__name__) if kind.__module__.startswith(operations) else kind


def _with_its_own_input(kind: type) -> type:
    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return kind.forward(self, x.clone(), *args, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward})


def _kept_apart(_: torch.nn.Module, given: tuple) -> tuple:
    """The host adds into what a norm was given, after the norm has kept it for its gradient."""
    return (given[0].clone(), *given[1:])
