"""Layers that compute by other methods than their class has: an *instance* carries a forward of its own.

Hooks of accelerate and diffusers (offloading, casting) put one there, and whoever wraps a layer. A change of the class
does not reach it, since it holds the old method. As a rule it ends in that method all the same, and so in one function
of torch that is given the layer's weight. While it runs, that one call is answered sparsely (`Rerouted`); whatever
surrounds it stays. What cannot be followed so is refused by name: the gradient would be wrong, or missing.
"""

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from ..errors import UnsupportedModelError
from .ops import CONVOLUTIONS, ConvOp, LayerOp

_TORCHS = (torch.nn.Linear, *CONVOLUTIONS)
_PLAIN = {kind.forward for kind in _TORCHS}
_PLAIN_CONVOLVE = {convolution._conv_forward for convolution in CONVOLUTIONS}
_FUNCTIONS = {F.linear, F.conv1d, F.conv2d, F.conv3d}
# Read the weight without computing anything that has a gradient.
_WITHOUT_GRADIENT = {torch.Tensor.data.__get__, torch.Tensor.grad.__get__, torch.Tensor.detach}


def is_plain(kind: type) -> bool:
    """Whether a class of layers computes what torch's own Linear, Conv1d, Conv2d or Conv3d does."""
    return kind.forward in _PLAIN and getattr(kind, "_conv_forward", None) in {None, *_PLAIN_CONVOLVE}


def check_torchs_own() -> None:
    """Raise UnsupportedModelError if somebody has exchanged the forward of one of torch's layer classes since this
    module was imported: its layers would count as ones with a forward of their own, and not be trained."""
    if exchanged := [kind.__name__ for kind in _TORCHS if kind.forward not in _PLAIN]:
        raise UnsupportedModelError(
            f"A program or extension has exchanged the forward of all {', '.join(exchanged)} layers of torch after "
            "SaRA was imported, so that they cannot be told from layers of another kind: import SaRA after it, or undo "
            "that before training."
        )


def own_methods(module: torch.nn.Module) -> list[str]:
    """Names of the methods by which this instance computes otherwise than its class: "forward", "_conv_forward", ….

    Whoever has wrapped a layer and unwrapped it leaves the class's own method behind; that does not count.
    """
    return [name for name in _overridden(module) if not _is_of_its_class(module, name)]


def set_aside(module: torch.nn.Module) -> list[str]:
    """Take methods off the instance that are those of its class anyway; returns their names, for `put_back`."""
    names = [name for name in _overridden(module) if _is_of_its_class(module, name)]
    for name in names:
        del module.__dict__[name]
    return names


def put_back(module: torch.nn.Module, names: list[str]) -> None:
    """Undo `set_aside`."""
    for name in names:
        module.__dict__[name] = MethodType(getattr(type(module), name), module)


def _overridden(module) -> list[str]:
    kind = type(module)
    return [name for name in module.__dict__ if "forward" in name and inspect.isfunction(getattr(kind, name, None))]


def _is_of_its_class(module, name: str) -> bool:
    method = module.__dict__[name]
    return (
        isinstance(method, MethodType)
        and method.__self__ is module
        and method.__func__ is getattr(type(module), name)
    )


class Rerouted:
    """The forward of a layer that has methods of its own, with another answer to torch's function for such layers.

    module: the attached layer; forward: as it was before, callable as the layer is; is_own: whether the instance had it
    name: what a message calls the layer; op: what layers of its class compute
    compute: (layer, input, op, whether `op.prepare` is to be called) → output, for each use of the weight
    """

    def __init__(
        self, module: torch.nn.Module, forward: Callable[..., Any], is_own: bool, name: str, op: LayerOp,
        compute: Callable[[torch.nn.Module, torch.Tensor, LayerOp, bool], torch.Tensor],
    ):  # fmt: skip
        self.module, self.forward, self.is_own = module, forward, is_own
        self.name, self.op, self.compute = name, op, compute

    @classmethod
    def install(cls, module: torch.nn.Module, name: str, op: LayerOp, compute: Callable) -> None:
        """Put one on a layer that is about to be attached; the arguments are those of the class."""
        module.forward = cls(module, module.forward, "forward" in module.__dict__, name, op, compute)

    @classmethod
    def remove(cls, module: torch.nn.Module) -> None:
        """Undo `install`. What was put around it meanwhile stays, and works on."""
        rerouted = module.__dict__.get("forward")
        if isinstance(rerouted, cls):
            del module.__dict__["forward"]
            if rerouted.is_own:
                module.forward = rerouted.forward

    def __call__(self, *args, **kwargs):
        """What the forward returns. Raises UnsupportedModelError if it does not compute with the layer's weight as
        layers of its kind do."""
        if "_sara" not in self.module.__dict__:  # detached, and still held by what was put around it
            return self.forward(*args, **kwargs)
        with _Answering(self) as answering:
            output = self.forward(*args, **kwargs)
        if not answering.answered:
            raise self.refusal("does not compute with the layer's own weight")
        return output

    def refusal(self, reason: str) -> UnsupportedModelError:
        """What to raise for a forward that cannot be followed."""
        return UnsupportedModelError(
            f"The forward of {self.name} was replaced by one that {reason}, which sparse training cannot follow: train "
            "the model without what replaced it (a hook, an adapter, an optimisation)."
        )


class _Answering(TorchFunctionMode):
    """Active while a layer's own forward runs: answers the one function that computes with the layer's weight."""

    def __init__(self, rerouted: Rerouted):
        self.rerouted, self.answered = rerouted, False
        self.with_gradient, self.hooks = torch.is_grad_enabled(), _saving_hooks()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        weight = self.rerouted.module._parameters["weight"]
        if not any(value is weight for value in _flat((*args, *kwargs.values()))):
            return function(*args, **kwargs)
        if function in _FUNCTIONS:
            self.answered = True
            self._check_not_computed_again()
            return self._answer(weight, *args, **kwargs)
        result = function(*args, **kwargs)
        if torch.is_grad_enabled() and isinstance(result, torch.Tensor) and function not in _WITHOUT_GRADIENT:
            raise self.rerouted.refusal("computes with the layer's weight in a way of its own")
        return result

    def _check_not_computed_again(self) -> None:
        """Raise UnsupportedModelError if what is computed now will be computed again in the backward: by then nobody
        answers."""
        is_reentrant = self.with_gradient and not torch.is_grad_enabled() and self.rerouted.module._sara.trains
        hooks = _saving_hooks()
        saves_nothing = hooks is not None and hooks != self.hooks and hooks[0].__module__ == checkpoint.__module__
        if is_reentrant or saves_nothing:
            raise self.rerouted.refusal("checkpoints its own activations")

    def _answer(self, own_weight, /, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        rerouted, module = self.rerouted, self.rerouted.module
        if weight is not own_weight or not _is_own_bias(bias, module):
            raise rerouted.refusal("takes the layer's weight for something else, or another bias than its own")
        op = rerouted.op
        if not isinstance(op, ConvOp):
            return rerouted.compute(module, input, op, True)
        if isinstance(padding, str):
            if padding != module.padding:
                raise rerouted.refusal(f"pads by '{padding}'")
            return rerouted.compute(module, input, op, True)
        stride, padding, dilation = (_of_each(value, op.spatial_dims) for value in (stride, padding, dilation))
        return rerouted.compute(module, input, ConvOp(op.kernel, stride, padding, dilation, groups), False)


def _saving_hooks() -> tuple | None:
    """What is asked now to keep a tensor that autograd saves, and to bring it back; None for nothing, and where torch
    does not tell."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return None if top is None else top(False)


def _is_own_bias(bias: torch.Tensor | None, module: torch.nn.Module) -> bool:
    """Whether a layer's own forward adds the layer's bias, and adds it as it is: the sparse one knows no other."""
    own = module._parameters.get("bias")
    if bias is own or bias is None or own is None:
        return bias is own
    live = module.bias  # another tensor each time, where it is trained
    return bias.shape == live.shape and torch.equal(bias.to(live.dtype), live)


def _of_each(value, dims: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * dims
    return tuple(value) * (dims if len(value) == 1 else 1)


def _flat(values):
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value
