"""Unstructural backpropagation (equations 6-7 of the SaRA paper) for Linear and convolution layers.

The trainable leaf is the vector Δ, not a weight: a layer's backward computes the gradient of its own chosen elements,
adds it into the vector's gradient and forgets it. No autograd function ever saves a weight, so frozen layers are
attached too (a plain frozen Linear keeps its weight alive, and inference tensors cannot be saved at all); they save
nothing.

How a layer reaches its weight is an *access* (design.md, decision 4): in place, or a copy to which Δ is added.
"""

import torch

from ..errors import UnsupportedModelError
from .access import WeightAccess
from .class_swap import original_class, swap, swap_back
from .ops import LayerOp, layer_op
from .parameters import Parametrized, in_backward, refuse_reentrant
from .store import Store


class Attachment:
    """What a layer needs for its sparse backward; kept on the module, so that copies of a model stay whole.

    op: what the layer computes; access: how it reaches its weight; route: one of weight_gradient.ROUTES
    number: the layer's segment in the store, or None for a frozen layer
    """

    def __init__(self, op: LayerOp, access: WeightAccess, store: Store, number: int | None, route: str):
        self.op, self.access, self.store, self.number, self.route = op, access, store, number, route

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
        ctx.input_shape = x.shape
        if attachment.trains:
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
                weight = weight.to(grad_output.dtype)
                grad_input = attachment.op.input_gradient(grad_output, weight, ctx.input_shape)
        # torch.autograd.grad(loss, inputs) asks for other gradients only: then Δ's must not change.
        learns = attachment.trains or module.trained_bias is not None
        if learns and torch._C._will_engine_execute_node(ctx.next_functions[1][0]):
            if attachment.trains:
                x, = ctx.saved_tensors
                attachment.add_gradient(x.to(grad_output.dtype), grad_output)
            if module.trained_bias is not None:
                gradient = attachment.op.bias_gradient(grad_output)
                module._sara_parameters.add_gradient(module.trained_bias, gradient)
        return grad_input, None, None, None


class _SparseLayer(Parametrized):
    """Mixed in before the class of an attached module."""

    def forward(self, x, **options):
        if options:
            raise UnsupportedModelError(
                f"A {original_class(self).__name__} layer of this model is called with {', '.join(options)}, "
                "which sparse training does not know."
            )
        if torch.compiler.is_compiling():
            raise UnsupportedModelError("torch.compile does not go with sparse training: use the model uncompiled.")
        attachment = self._sara
        values = attachment.store.values if attachment.trains or self.trained_bias is not None else None
        spatial_dims = attachment.op.spatial_dims
        if spatial_dims is not None and x.dim() == spatial_dims + 1:  # a single sample without its batch dimension
            return self.forward(x.unsqueeze(0)).squeeze(0)
        return _SparseLayerFunction.apply(attachment.op.prepare(x), values, self, attachment)

    @property
    def trained_bias(self) -> int | None:
        """The bias's segment in the store, if it has elements to train."""
        trained = self.__dict__.get("_sara_parameters")
        number = None if trained is None else trained.numbers.get("bias")
        return number if number is not None and trained.store.trains(number) else None


def attach(
    module: torch.nn.Module, store: Store, number: int | None, access: WeightAccess, route: str = "auto"
) -> None:
    """Make a Linear or Conv module train segment `number` of the store, or, with None, freeze it without saving.

    route: one of weight_gradient.ROUTES

    Afterwards its forward raises UnsupportedModelError under torch.compile and for named arguments, its backward
    under reentrant checkpointing.
    """
    module._sara = Attachment(layer_op(module), access, store, number, route)
    swap(module, _SparseLayer)


def detach(module: torch.nn.Module) -> None:
    """Undo `attach` and `train_parameter`: the module's class and attributes are what they were, its weights as they
    are."""
    swap_back(module)
    module.__dict__.pop("_sara", None)
    module.__dict__.pop("_sara_parameters", None)


def is_attached(module: torch.nn.Module) -> bool:
    """Whether a Linear or Conv module computes with a sparse backward."""
    return isinstance(module, _SparseLayer)


def is_changed(module: torch.nn.Module) -> bool:
    """Whether `detach` has something to undo."""
    return isinstance(module, Parametrized)
