"""What nodes have put between the layers of a MODEL, made fit for a backward.

Such a function may write over what it was given after it has computed with it, as FreeU_V2 does with hidden states.
Without a gradient nobody notices; autograd refuses, for it has saved what is no more. So copies are saved of that.
"""

from collections.abc import Callable, Iterator

import torch
from torch.autograd.graph import saved_tensors_hooks

from ....sara_core.errors import UnsupportedModelError


def differentiable(options: dict) -> dict:
    """transformer_options of the host, in which the functions of "patches" may write over what they are given."""
    patches = options.get("patches")
    if not patches:
        return options
    return {**options, "patches": {place: [_saving_copies(patch) for patch in some] for place, some in patches.items()}}


def _saving_copies(patch: Callable) -> Callable:
    def run(*args, **kwargs):
        given = {_memory(tensor) for tensor in _tensors([args, kwargs])}

        def save(tensor):
            saved = tensor.clone() if _memory(tensor) in given else tensor.detach()
            return saved, saved._version

        with saved_tensors_hooks(save, _unchanged):
            return patch(*args, **kwargs)

    return run


def _unchanged(saved: tuple[torch.Tensor, int]) -> torch.Tensor:
    tensor, version = saved
    if tensor._version != version:
        raise UnsupportedModelError(
            "A node has put something between the layers of this MODEL that writes over what it has computed, which "
            "training cannot follow: connect the MODEL from before that node."
        )
    return tensor


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(value) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
