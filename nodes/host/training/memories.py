"""What a model's modules keep between forwards, beside their weights.

HiDream-O1 keeps what it made of the text for the next sampling step, ACE-Step the table of positions of its longest
lyrics. In training that is wrong: what was kept belongs to other weights and to a graph that has had its backward, and
autograd cannot save what was kept in inference mode.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from ....sara_core.backward.layer import is_attached
from .dataset import without_inference_tensors

# What every module has: parameters, buffers and further modules, in dictionaries of torch's own.
_OF_EVERY_MODULE = frozenset(vars(torch.nn.Module()))


def start_without_memories(undo: ExitStack, module: torch.nn.Module) -> None:
    """Empty the caches that the host has a method for, and replace tensors made in inference mode, in plain attributes
    of the model's modules, by copies; `undo` puts all of it back."""
    undo.enter_context(nothing_kept(module))
    for part in module.modules():
        clear = getattr(part, "clear_kv_cache", None)
        if callable(clear):
            clear()
    for part, attributes in _attributes(module):
        for name, value in attributes.items():
            if _holds(value, torch.Tensor.is_inference):
                setattr(part, name, without_inference_tensors(value))


@contextmanager
def nothing_kept(module: torch.nn.Module) -> Iterator[None]:
    """For one run of a model: afterwards its modules' plain attributes that hold tensors are as they were before."""
    before = list(_attributes(module))
    try:
        yield
    finally:
        for part, attributes in before:
            now = vars(part)
            for name in [name for name in now if name not in attributes and name not in _OF_EVERY_MODULE]:
                if _holds(now[name]):
                    delattr(part, name)
            for name, value in attributes.items():
                if now.get(name) is not value and (_holds(value) or _holds(now.get(name))):
                    setattr(part, name, value)


def _attributes(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, dict]]:
    """Each module but the attached layers, which keep nothing, with its plain attributes."""
    for part in module.modules():
        if not is_attached(part):
            yield part, {name: value for name, value in vars(part).items() if name not in _OF_EVERY_MODULE}


def _holds(value, wanted=lambda tensor: True) -> bool:
    """Whether there is such a tensor in it or in its lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        return wanted(value)
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return False
    return any(_holds(item, wanted) for item in value)
