"""Methods of a model's modules that the host runs without a gradient, because nobody trains there (the routing between
the experts of Hunyuan3D 2.1): for the time of training they are run with one."""

from contextlib import ExitStack
from types import MethodType

import torch

from ....sara_core.backward.layer import is_attached


def run_with_gradients(undo: ExitStack, module: torch.nn.Module) -> None:
    """Take `@torch.no_grad()` and its like off the methods of all modules that hold attached layers."""
    for part in module.modules():
        if is_attached(part) or not any(is_attached(inner) for inner in part.modules()):
            continue
        for name, method in _decorated(type(part)).items():
            setattr(part, name, MethodType(method.__wrapped__, part))
            undo.callback(delattr, part, name)


def _decorated(kind: type) -> dict:
    """The methods of a class that run in a context of torch's: name → decorated function."""
    methods = {}
    for base in reversed(kind.__mro__):
        if issubclass(base, torch.nn.Module) and base is not torch.nn.Module:
            methods.update(vars(base))
    return {name: method for name, method in methods.items() if _is_decorated(method)}


def _is_decorated(method) -> bool:
    made_in = getattr(method, "__globals__", {}).get("__name__")
    return made_in == "torch.utils._contextlib" and hasattr(method, "__wrapped__")
