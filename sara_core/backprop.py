"""Unstructural backpropagation (equations 6-7 of the SaRA paper) for Linear and convolution layers.

The trainable leaf is the vector Δ, not a weight: a layer's backward computes the gradient of its own chosen elements,
adds it into the vector's gradient and forgets it. No autograd function ever saves a weight, so frozen layers are
attached too (a plain frozen Linear keeps its weight alive, and inference tensors cannot be saved at all); they save
nothing.

How a layer reaches its weight is an *access* (design.md, decision 4): in place, or a copy to which Δ is added.
"""

from contextlib import contextmanager

import torch

from .elements import gather, scatter_
from .errors import UnsupportedModelError
from .layers import layer_op
from .store import Store
from .weight_gradient import sparse_weight_gradient


class InPlace:
    """The module's own tensors; Δ is already in them."""

    @contextmanager
    def tensors(self, module, like):
        """Yields (weight, bias) for an input of the dtype and device of `like`."""
        yield module.weight, module.bias


class AddedCopy:
    """A copy of the module's weight with Δ added, for weights that must not be written (mapped from a file, shared).

    The copy lives as long as one layer's forward or backward."""

    def __init__(self, store: Store, number: int):
        self.store, self.number = store, number

    @contextmanager
    def tensors(self, module, like):
        yield self.add(module.weight, module.weight.dtype), module.bias

    def add(self, weight: torch.Tensor, stored_dtype: torch.dtype) -> torch.Tensor:
        """A new tensor: `weight` with its chosen elements at round(weight + Δ).

        stored_dtype: the dtype the weight is stored in, to which the sum is rounded even if `weight` is a cast of it,
            so that this way of reaching a weight and writing it in place compute with the same bits
        """
        position = self.store.support.segments[self.number].flat()
        changed = self.store.changed(self.number, gather(weight, position).to(stored_dtype))
        return scatter_(weight.detach().clone(), position, changed.to(weight.dtype))


class Attachment:
    """What a layer needs for its sparse backward; kept on the module, so that copies of a model stay whole.

    number: the layer's segment in the store, or None for a frozen layer
    """

    def __init__(self, op, access, store: Store, number: int | None, route: str):
        self.op, self.access, self.store, self.number, self.route = op, access, store, number, route


class _SparseLayerFunction(torch.autograd.Function):
    """forward: op(x, weight); backward: the gradient of x is returned, that of the support goes to the store.

    Δ is an input so that the layer takes part in the graph even if its own input needs no gradient, and so that
    whatever waits for the vector's gradient (DistributedDataParallel) is told after the last layer's backward. The
    gradient returned for it is None: nothing per layer is ever as long as the vector.
    """

    @staticmethod
    def forward(ctx, x, values, module, attachment):
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        ctx.module, ctx.attachment = module, attachment
        ctx.made_in_backward = torch._C._current_graph_task_id() != -1
        ctx.input_shape = x.shape
        if attachment.number is not None:
            ctx.save_for_backward(x)
        with attachment.access.tensors(module, x) as (weight, bias):
            # .data: as a view (some Linear outputs are one) the output could not be changed in place by the model.
            return attachment.op.forward(x, weight, bias).data

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        module, attachment = ctx.module, ctx.attachment
        if ctx.made_in_backward:
            raise UnsupportedModelError(
                "Reentrant gradient checkpointing cannot be combined with sparse training: "
                "pass use_reentrant=False to torch.utils.checkpoint.checkpoint."
            )
        grad_input = None
        if ctx.needs_input_grad[0]:
            with attachment.access.tensors(module, grad_output) as (weight, _):
                weight = weight.to(grad_output.dtype)
                grad_input = attachment.op.input_gradient(grad_output, weight, ctx.input_shape)
        # torch.autograd.grad(loss, inputs) asks for other gradients only: then Δ's must not change.
        wants_delta = attachment.number is not None and torch._C._will_engine_execute_node(ctx.next_functions[1][0])
        if wants_delta:
            x, = ctx.saved_tensors
            segment = attachment.store.support.segments[attachment.number]
            gradient = sparse_weight_gradient(
                attachment.op, segment, x.to(grad_output.dtype), grad_output, attachment.route
            )
            attachment.store.accumulate(attachment.number, gradient)
        return grad_input, None, None, None


class _SparseLayer:
    """Mixed in before the class of an attached module by a swap of `__class__`."""

    def forward(self, x, **options):
        if options:
            raise UnsupportedModelError(
                f"A {type(self)._sara_original.__name__} layer of this model is called with {', '.join(options)}, "
                "which sparse training does not know."
            )
        if torch.compiler.is_compiling():
            raise UnsupportedModelError("torch.compile does not go with sparse training: use the model uncompiled.")
        attachment = self._sara
        values = attachment.store.values if attachment.number is not None else None
        spatial_dims = attachment.op.spatial_dims
        if spatial_dims is not None and x.dim() == spatial_dims + 1:  # a single sample without its batch dimension
            return self.forward(x.unsqueeze(0)).squeeze(0)
        return _SparseLayerFunction.apply(attachment.op.prepare(x), values, self, attachment)

    def __reduce_ex__(self, protocol):
        # Swapped classes are made at run time and cannot be found by name: pickle the class they were made from.
        _, _, *state = super().__reduce_ex__(protocol)
        return _new_sparse_layer, (type(self)._sara_original,), *state


_sparse_classes: dict[type, type] = {}


def _sparse_class(original: type) -> type:
    if original not in _sparse_classes:
        _sparse_classes[original] = type(
            f"Sparse{original.__name__}", (_SparseLayer, original), {"_sara_original": original}
        )
    return _sparse_classes[original]


def _new_sparse_layer(original: type):
    sparse = _sparse_class(original)
    return sparse.__new__(sparse)


def attach(module, store: Store, number: int | None, access, route: str = "auto") -> None:
    """Make a Linear or Conv module train segment `number` of the store, or, with None, freeze it without saving."""
    module._sara = Attachment(layer_op(module), access, store, number, route)
    module.__class__ = _sparse_class(type(module))


def detach(module) -> None:
    """Undo `attach`: the module's class and attributes are what they were."""
    module.__class__ = type(module)._sara_original
    del module._sara


def is_attached(module) -> bool:
    return isinstance(module, _SparseLayer)
