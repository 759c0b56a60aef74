"""Training parameters that are no weight of a Linear or Conv layer: biases, norms, embeddings, a module's own tensors.

Models read them in their own ways, so they are replaced where they are read: whoever asks the module for such a
parameter gets a *stand-in*, a copy with Δ in it, whose gradient goes to the store. A copy is affordable (these tensors
are small), can always be saved for the backward, and may be made of a tensor that must not be written. Only the bias
of an attached Linear or Conv layer takes a shorter way: that layer's own backward (layer.py).
"""

from dataclasses import dataclass

import torch

from ..errors import UnsupportedModelError
from ..tensors.elements import added, gather, has_own_operations, scatter_
from .class_swap import Swapped, swap
from .element_kernels import kernels_for
from .store import Store


@dataclass(frozen=True)
class ParameterOf:
    """Where a parameter is, for the store: `.weight` is the tensor of that name in the module, stand-ins aside."""

    module: torch.nn.Module
    name: str

    @property
    def weight(self) -> torch.Tensor:
        """The tensor itself, as the module has it now."""
        return self.module._parameters[self.name]


def identity(parameter: torch.Tensor) -> tuple:
    """Equal for parameters that are the same elements in memory: tied ones, be they one object or several."""
    plain = type(parameter) in (torch.nn.Parameter, torch.Tensor) and not parameter.is_meta
    if not plain or parameter.numel() == 0:
        return (id(parameter),)
    return parameter.data_ptr(), parameter.device, parameter.dtype, parameter.shape, parameter.stride()


def add_delta_(copy: torch.Tensor, store: Store, number: int, stored_dtype: torch.dtype) -> torch.Tensor:
    """Set the elements of segment `number` in a copy of its weight to round(weight + Δ); returns the copy.

    copy: floating point, of the weight's shape, on any device
    stored_dtype: the dtype the weight is stored in, to which the sum is rounded even if `copy` is a cast of it, so
        that this way of reaching a weight and writing it in place compute with the same bits
    """
    kernels = kernels_for(copy.device, copy.dtype)
    if kernels is not None and stored_dtype in kernels.DTYPES and store.values.device == copy.device:
        if not has_own_operations(copy) and copy.is_contiguous():
            for segment, values in store.parts(number):
                kernels.change_(copy, segment.crow, segment.col, values, stored_dtype)
            return copy
    position, values = (tensor.to(copy.device) for tensor in store.whole(number))
    changed = added(gather(copy, position).to(stored_dtype), values, 1.0)
    return scatter_(copy, position, changed.to(copy.dtype))


class Parametrized(Swapped):
    """Mixed in before the class of a module whose parameters are trained by themselves."""

    def __getattr__(self, name):
        trained = self.__dict__.get("_sara_parameters")
        if trained is not None and name in trained.numbers:
            return trained.stand_in(name)
        return super().__getattr__(name)


class TrainedParameters:
    """Which parameters of one module are trained. Kept on the module.

    numbers: name → segment in the store
    """

    def __init__(self, store: Store, numbers: dict[str, int]):
        self.store, self.numbers = store, numbers

    def stand_in(self, name: str) -> torch.Tensor:
        """What the module gives its forward for the parameter: a copy with Δ in it, with a graph that leads to Δ."""
        number = self.numbers[name]
        return _StandIn.apply(self.store.values if self.store.trains(number) else None, self, number)

    def copy(self, number: int) -> torch.Tensor:
        """The parameter of segment `number` with Δ in it: a new tensor of its dtype and shape, without a graph."""
        weight = self.store.holders[number].weight.detach()
        if self.store.base[number] is not None:
            return weight.clone()
        return add_delta_(weight.clone(), self.store, number, weight.dtype)

    def add_gradient(self, number: int, gradient: torch.Tensor) -> None:
        """Add the parameter's gradient, of its shape, at the chosen elements to the vector's."""
        self.store.take_dense(number, gradient)


def train_parameter(module: torch.nn.Module, name: str, store: Store, number: int) -> None:
    """Let `module` train its parameter `name` as segment `number` of the store."""
    if not isinstance(module, Parametrized):
        swap(module, Parametrized)
    if "_sara_parameters" not in module.__dict__:
        module._sara_parameters = TrainedParameters(store, {})
    module._sara_parameters.numbers[name] = number


class _StandIn(torch.autograd.Function):
    """forward: a copy of the parameter with Δ in it; backward: the gradient of its chosen elements goes to the store.

    Δ is an input, and the gradient returned for it None, as in a layer (layer.py).
    """

    @staticmethod
    def forward(ctx, values, trained, number):
        ctx.trained, ctx.number, ctx.made_in_backward = trained, number, in_backward()
        return trained.copy(number)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        refuse_reentrant(ctx.made_in_backward)
        # Only Δ depends on this node, so it does not run where another gradient is asked for.
        ctx.trained.add_gradient(ctx.number, gradient)
        return None, None, None


def in_backward() -> bool:
    """Whether a backward is running: then a forward is the recomputation of gradient checkpointing."""
    return torch._C._current_graph_task_id() != -1


def refuse_reentrant(made_in_backward: bool) -> None:
    """Raise UnsupportedModelError for a node whose forward ran inside of a backward."""
    if made_in_backward:
        raise UnsupportedModelError(
            "Reentrant gradient checkpointing cannot be combined with sparse training: "
            "pass use_reentrant=False to torch.utils.checkpoint.checkpoint."
        )
