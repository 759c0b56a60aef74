"""Layers of a kind that nobody has prepared training for are tried before they are trained.

Training puts another forward in place of a layer's own, one that multiplies with the weight that the layer's cast hands
out. That is the layer's own computation, and the gradient its gradient, if three things are so: two casts give the same
bits; the layer's own forward is the product with what they give; its own backward is the product's.
"""

import torch

from ....sara_core.backward.ops import LayerOp, layer_op
from ....sara_core.errors import UnsupportedModelError
from ..precision import ordinary, precision_of
from .weights import HostWeight

# Of the norm of an output or a gradient, all in fp32: kernels may add up in another order.
TOLERANCE = 1e-4
ROWS = 3


def check_kind(name: str, layer: torch.nn.Module, device: torch.device) -> None:
    """Raise UnsupportedModelError, with the layer's name and what its kind does not do, unless it can be trained.

    layer: of a loaded model, with a weight that its forward is to multiply by; device: where it computes
    """
    op, generator = layer_op(layer), torch.Generator().manual_seed(0)
    x = torch.randn(_input_shape(op, layer), generator=generator).to(device).requires_grad_()
    weight, bias = _handed_out(name, layer, x)
    if not torch.equal(weight, _handed_out(name, layer, x)[0]):
        raise _refused(name, layer, "gives another weight each time it is asked")
    expected, dense, grad_output = _product(op, x, weight, bias, generator)
    for streamed in (False, True):
        output = _own_output(name, layer, x, streamed)
        if output.shape != expected.shape or not _close(output, expected):
            raise _refused(name, layer, "computes something else than the product with its weight")
        if not output.requires_grad:
            raise _refused(name, layer, "has no gradient")
        own, = torch.autograd.grad(output, x, grad_output.to(output.dtype), allow_unused=True)
        if own is None or not _close(own, dense):
            raise _refused(name, layer, "has another gradient than the product with its weight")


def _product(op: LayerOp, x, weight, bias, generator):
    """(what training would compute, its gradient for x, the gradient of the output that this one is for)"""
    with torch.enable_grad():
        prepared = op.prepare(x)
    with torch.no_grad():
        output = op.forward(prepared, weight, bias)
        grad_output = torch.randn(output.shape, generator=generator).to(x.device)
        gradient = op.input_gradient(grad_output, weight, prepared.shape)
    if prepared is not x:
        gradient, = torch.autograd.grad(prepared, x, gradient)
    return output, gradient, grad_output


def _input_shape(op: LayerOp, layer) -> tuple[int, ...]:
    if op.spatial_dims is None:
        return ROWS, layer.in_features
    return ROWS, layer.in_channels, *(reach * (size - 1) + 2 for size, reach in zip(op.kernel, op.dilation))


def _handed_out(name, layer, x):
    """(weight, bias) as the layer's cast gives them in fp32: copies, which outlive their use."""
    try:
        with torch.no_grad(), HostWeight().tensors(layer, x) as (weight, bias):
            is_floating = type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.dtype == x.dtype
            if is_floating and weight.shape == layer.weight.shape:
                return weight.clone(), None if bias is None else bias.clone()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise _refused(name, layer, f"cannot be dequantised ({type(error).__name__}: {error})") from error
    raise _refused(name, layer, "does not give its weight as floating numbers")


def _own_output(name, layer, x, streamed: bool):
    """Of the layer's own forward, with a graph. Autograd cannot save the host's inference tensors: ordinary ones lie in
    their place meanwhile.

    streamed: as the host computes where the model does not fit the device
    """
    parameters, attributes = dict(layer._parameters), dict(layer.__dict__)
    try:
        for key, tensor in parameters.items():
            if tensor is not None and tensor.is_inference() and precision_of(tensor) is None:
                layer._parameters[key] = torch.nn.Parameter(ordinary(tensor.detach()).clone(), requires_grad=False)
        if streamed:
            layer.comfy_cast_weights = True
        with torch.enable_grad():
            return layer(x)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise _refused(name, layer, f"does not compute ({type(error).__name__}: {error})") from error
    finally:
        layer._parameters.update(parameters)
        layer.__dict__.clear()
        layer.__dict__.update(attributes)


def _close(found, expected) -> bool:
    difference = (found.detach().float() - expected.detach().float()).norm()
    return bool(difference <= TOLERANCE * expected.float().norm())  # false for what is no number


def _refused(name, layer, reason: str) -> UnsupportedModelError:
    kind = type(layer).__name__
    stored = precision_of(layer.weight)
    of = f"a {kind}" if stored is None else f"a {kind} with a weight in {stored}"
    return UnsupportedModelError(
        f"The layer '{name}' of this MODEL is {of}, which training does not know, and it {reason}: load the model with "
        "one of ComfyUI's own loaders or with ComfyUI-GGUF, or train it in bf16."
    )
