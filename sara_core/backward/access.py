"""How a layer reaches its weight (design decision 4): in place, or a copy to which Δ is added."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch

from .parameters import add_delta_
from .store import Store


_WeightAndBias = tuple[torch.Tensor, torch.Tensor | None]


class WeightAccess(Protocol):
    """How the forward and the backward of one layer reach its weight.

    Called for each use, by any thread, also at once for several layers. Nothing that it hands out may outlive the
    block: it is a copy that is then forgotten, or the model's own tensor.
    """

    def tensors(self, module: torch.nn.Module, like: torch.Tensor) -> AbstractContextManager[_WeightAndBias]:
        """A block that has (weight, bias), with Δ in the weight, to compute with and not to change.

        module: the attached Linear or Conv layer; like: a tensor on the device that computes and in the dtype to
            compute in: the layer's input, or in the backward the gradient of its output
        weight: floating point, of the module's shape; bias: None if the module has none, else [out]. Both on the
            device of `like`; a weight in another dtype than `like` has is converted by the caller in the backward, and
            in the forward what torch's own layer would say of it is said
        """
        ...


class InPlace:
    """The module's own tensors; Δ is already in them."""

    def tensors(self, module: torch.nn.Module, like: torch.Tensor) -> AbstractContextManager[_WeightAndBias]:
        """Of a plain layer without asking the module's `__getattr__`: this is done three times a layer and step, and on
        a GPU the step waits for it."""
        own = module._parameters
        if "_sara_parameters" in module.__dict__ or own.get("weight") is None:
            return nullcontext((module.weight, module.bias))
        return nullcontext((own["weight"], own.get("bias")))


class AddedCopy:
    """A copy of the module's weight with Δ added, for weights that must not be written (mapped from a file, shared).

    The copy lives as long as one layer's forward or backward.

    number: the weight's segment in the store
    """

    def __init__(self, store: Store, number: int):
        self.store, self.number = store, number

    @contextmanager
    def tensors(self, module: torch.nn.Module, like: torch.Tensor) -> Iterator[_WeightAndBias]:
        yield self.add(module.weight, module.weight.dtype), module.bias

    def add(self, weight: torch.Tensor, stored_dtype: torch.dtype) -> torch.Tensor:
        """A new tensor in the dtype of `weight`: the weight, or a cast of it, with Δ added.

        stored_dtype: in which the weight is stored; the sum is rounded to that first (see `add_delta_`)
        """
        return self.add_to(weight.detach().clone(), stored_dtype)

    def add_to(self, copy: torch.Tensor, stored_dtype: torch.dtype) -> torch.Tensor:
        """As `add`, into a copy of the weight that is the caller's own; returns it."""
        return add_delta_(copy, self.store, self.number, stored_dtype)


class Streamed:
    """Through a copy of the weight on the device of the layer's input.

    added: adds Δ to the copy; None for a frozen layer
    """

    def __init__(self, added: AddedCopy | None):
        self.added = added

    @contextmanager
    def tensors(self, module: torch.nn.Module, like: torch.Tensor) -> Iterator[_WeightAndBias]:
        copy = module.weight.to(like.device, copy=True)
        yield copy if self.added is None else self.added.add_to(copy, copy.dtype), module.bias
