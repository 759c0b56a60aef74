"""Unstructural backpropagation (equations 6-7 of the SaRA paper) for Linear and convolution layers.

The trainable leaf is the vector Δ, not a weight: a layer's backward computes the gradient of its own chosen elements,
adds it into the vector's gradient and forgets it. No autograd function ever saves a weight, so frozen layers are
attached too (a plain frozen Linear keeps its weight alive, and inference tensors cannot be saved at all); they save
nothing.

How a layer reaches its weight is an *access* (design.md, decision 4): in place, or a copy to which Δ is added.
"""

from types import MethodType

import torch

from ..errors import UnsupportedModelError
from .access import WeightAccess
from .class_swap import original_class, swap, swap_back
from .ops import LayerOp, layer_op
from .own_forward import Rerouted, own_methods, put_back, set_aside
from .parameters import Parametrized, in_backward, refuse_reentrant
from .store import Store
from .support import Segment


class Attachment:
    """What a layer needs for its sparse backward; kept on the module, so that copies of a model stay whole.

    op: what the layer computes; access: how it reaches its weight; route: one of weight_gradient.ROUTES
    number: the layer's segment in the store, or None for a frozen layer
    set_aside: methods that the instance had beside its class's equal ones, to be put back
    """

    def __init__(self, op: LayerOp, access: WeightAccess, store: Store, number: int | None, route: str):
        self.op, self.access, self.store, self.number, self.route = op, access, store, number, route
        self.set_aside: list[str] = []

    def with_op(self, op: LayerOp) -> "Attachment":
        """The same for a use of the weight by another operation."""
        return Attachment(op, self.access, self.store, self.number, self.route)

    @property
    def trains(self) -> bool:
        """Whether the weight has elements to train."""
        return self.number is not None and self.store.trains(self.number)

    def add_gradient(self, x: torch.Tensor, grad_output: torch.Tensor) -> None:
        """Add the gradient of the layer's elements to the vector's.

        x: the layer's input after `op.prepare`; grad_output: gradient of its output; of one floating dtype
        """
        self.store.take(self.number, self.op, x, grad_output, self.route)


class _SparseLayerFunction(torch.autograd.Function):
    """forward: op(x, weight, bias); backward: the gradient of x is returned, that of the support goes to the store.

    Δ is an input so that the layer takes part in the graph even if its own input needs no gradient, and so that
    whatever waits for the vector's gradient (DistributedDataParallel) is told after the last layer's backward. The
    gradient returned for it is None: nothing per layer is ever as long as the vector.
    """

    @staticmethod
    def forward(ctx, x, values, module, attachment):
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        ctx.module, ctx.attachment = module, attachment
        ctx.made_in_backward = in_backward()
        ctx.input_shape, ctx.trains = x.shape, attachment.trains
        if ctx.trains:
            ctx.save_for_backward(x)
        with attachment.access.tensors(module, x) as (weight, bias):
            # .data: as a view (some Linear outputs are one) the output could not be changed in place by the model.
            return attachment.op.forward(x, weight, bias).data

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        module, attachment = ctx.module, ctx.attachment
        refuse_reentrant(ctx.made_in_backward)
        grad_input = None
        if ctx.needs_input_grad[0]:
            with attachment.access.tensors(module, grad_output) as (weight, _):
                if weight.dtype != grad_output.dtype:
                    weight = weight.to(grad_output.dtype)
                grad_input = attachment.op.input_gradient(grad_output, weight, ctx.input_shape)
        # torch.autograd.grad(loss, inputs) asks for other gradients only: then Δ's must not change.
        bias = module.trained_bias
        learns = ctx.trains or bias is not None
        if learns and torch._C._will_engine_execute_node(ctx.next_functions[1][0]):
            if ctx.trains:
                x, = ctx.saved_tensors
                attachment.add_gradient(x if x.dtype == grad_output.dtype else x.to(grad_output.dtype), grad_output)
            if bias is not None:
                module._sara_parameters.add_gradient(bias, attachment.op.bias_gradient(grad_output))
        return grad_input, None, None, None


class _SparseLayer(Parametrized):
    """Mixed in before the class of an attached module."""

    def forward(self, input, **options):  # named as torch's layers name it: AnimateDiff in diffusers calls it so
        if not isinstance(self, _SparseLayer):  # whoever has wrapped the attached layer still holds this method
            return type(self).forward(self, input, **options)
        if options:
            raise UnsupportedModelError(
                f"A {original_class(self).__name__} layer of this model is called with {', '.join(options)}, "
                "which sparse training does not know."
            )
        return _computed(self, input, self._sara.op)

    @property
    def trained_bias(self) -> int | None:
        """The bias's segment in the store, if it has elements to train."""
        trained = self.__dict__.get("_sara_parameters")
        number = None if trained is None else trained.numbers.get("bias")
        return number if number is not None and trained.store.trains(number) else None


def _computed(layer: torch.nn.Module, x: torch.Tensor, op: LayerOp, prepares: bool = True) -> torch.Tensor:
    """What an attached layer makes of its input by `op`, its own or one of the same weight's shape.

    prepares: whether the input is still to be prepared for `op`
    """
    if torch.compiler.is_compiling():
        raise UnsupportedModelError("torch.compile does not go with sparse training: use the model uncompiled.")
    if op.spatial_dims is not None and x.dim() == op.spatial_dims + 1:  # a single sample without its batch dimension
        return _computed(layer, x.unsqueeze(0), op, prepares).squeeze(0)
    attachment = layer._sara if op is layer._sara.op else layer._sara.with_op(op)
    trains = attachment.trains
    if trains:
        _check_device(attachment.store.support.segments[attachment.number], x)
    values = attachment.store.values if trains or layer.trained_bias is not None else None
    return _SparseLayerFunction.apply(op.prepare(x) if prepares else x, values, layer, attachment)


def _check_device(segment: Segment, x: torch.Tensor) -> None:
    if segment.col.device != x.device:
        raise UnsupportedModelError(
            f"'{segment.name}' was on {segment.col.device} when training began, and computes on {x.device}: move the "
            "model before SaRA is constructed, and take offloading off it. SaRA's stream_to trains weights that stay "
            "in the main memory."
        )


def attach(
    module: torch.nn.Module, store: Store, number: int | None, access: WeightAccess, route: str = "auto"
) -> None:
    """Make a Linear or Conv module train segment `number` of the store, or, with None, freeze it without saving.

    route: one of weight_gradient.ROUTES

    Afterwards its forward raises UnsupportedModelError under torch.compile and for named arguments, its backward
    under reentrant checkpointing. A forward of the instance's own goes on working (own_forward.py).
    """
    module._sara = Attachment(layer_op(module), access, store, number, route)
    module._sara.set_aside = set_aside(module)
    if own_methods(module):
        name = f"a frozen {type(module).__name__} layer"
        if number is not None:
            name = f"'{store.support.segments[number].name}'"
        Rerouted.install(module, name, module._sara.op, _computed)
    swap(module, _SparseLayer)


def detach(module: torch.nn.Module) -> None:
    """Undo `attach` and `train_parameter`: the module's class and attributes are what they were, its weights as they
    are."""
    swap_back(module)
    module.__dict__.pop("_sara_parameters", None)
    attachment = module.__dict__.pop("_sara", None)
    if attachment is not None:
        Rerouted.remove(module)
        put_back(module, attachment.set_aside)


def is_attached(module: torch.nn.Module) -> bool:
    """Whether a Linear or Conv module computes with a sparse backward."""
    return isinstance(module, _SparseLayer)


def has_lost_its_backward(module: torch.nn.Module) -> bool:
    """Whether an attached layer computes as it did before: its own forward, which held the old method, was taken off
    meanwhile."""
    forward = module.__dict__.get("forward")
    return isinstance(forward, MethodType) and forward.__func__ is original_class(module).forward


def is_changed(module: torch.nn.Module) -> bool:
    """Whether `detach` has something to undo."""
    return isinstance(module, Parametrized)
