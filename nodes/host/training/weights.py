"""How a module of a loaded ComfyUI model reaches its weight, and whether that weight may be written."""

from contextlib import contextmanager

import comfy.ops
import torch
from torch._subclasses.fake_tensor import FakeTensor

from ....sara_core.backward.access import AddedCopy
from ..mapped import may_be_mapped
from ..precision import ORDINARY, SMOOTHING, is_gguf, is_known, ordinary, precision_of


class HostWeight:
    """A WeightAccess (sara_core/backward/access.py) through the host's own cast: whatever dtype, device and patches the
    host would compute with, this computes with.

    A quantised weight comes dequantised, in the dtype that is computed in. Where the host would rather multiply its
    bytes with a quantised input, this does not: that has no gradient.

    added: adds Δ to a copy of what the host hands out, for weights that are streamed, mapped, quantised or patched on
        the fly; None for weights that Δ is written into, and for frozen ones
    """

    def __init__(self, added: AddedCopy | None = None):
        self.added = added

    @contextmanager
    def tensors(self, module, like):
        weight, bias, cast = _cast(module, like)
        try:
            yield self._with_delta(module, weight, like.dtype), _plain(bias, like.dtype)
        finally:
            if cast is not None:
                comfy.ops.uncast_bias_weight(module, weight, bias, cast)

    def _with_delta(self, module, weight, dtype):
        if not is_packed(module.weight):
            return weight if self.added is None else self.added.add(weight, module.weight.dtype)
        weight = _smoothed(module, _plain(weight, dtype))
        if self.added is None:
            return weight
        # What was made for this use only needs no second copy.
        changed = self.added.add_to if _is_made_anew(module) else self.added.add
        return changed(weight, weight.dtype)


def _cast(module, like):
    """(weight, bias, what `uncast_bias_weight` needs, or None)"""
    if isinstance(like, FakeTensor) and is_packed(module.weight):
        return *_without_content(module, like), None
    own_cast = _own_cast(module)
    if own_cast is not None:
        return *own_cast(dtype=like.dtype, device=like.device, bias_dtype=like.dtype), None
    if is_cast(module):
        return comfy.ops.cast_bias_weight(module, like, offloadable=True)
    return module.weight, module.bias, None


def _without_content(module, like):
    """What a cast makes where memory is foretold: not every pack dequantises a tensor that is not there."""
    bias = module.bias
    return like.new_empty(module.weight.shape), None if bias is None else like.new_empty(bias.shape)


def _own_cast(module):
    """The cast of a layer whose pack has its own: ComfyUI-GGUF's, which it takes for what it has quantised."""
    quantised = getattr(module, "is_ggml_quantized", lambda: True)
    return getattr(module, "cast_bias_weight", None) if quantised() else None


def _plain(tensor, dtype):
    """What a cast hands out, as an ordinary tensor: the host leaves a quantised one as it is where its dtype fits."""
    if tensor is None or type(tensor) in (torch.Tensor, torch.nn.Parameter):
        return tensor
    if callable(getattr(tensor, "dequantize", None)) and not is_gguf(tensor):
        return tensor.to(dtype=dtype).dequantize().to(dtype)
    return ordinary(tensor)


def _is_made_anew(module) -> bool:
    """Whether the host dequantises the weight for each use. It does not where there is nothing to do, as for what GGUF
    files have unquantised; what it makes for a streamed layer (`_v`) it may keep, and what others do nobody knows."""
    weight = module.weight
    if isinstance(weight, FakeTensor):
        return True
    return precision_of(weight) is not None and is_known(weight) and not hasattr(module, "_v")


def _smoothed(module, weight):
    """With the factors in it that the host multiplies a smoothed layer's input by."""
    smoothing = getattr(module, SMOOTHING, None)
    return weight if smoothing is None else weight * smoothing.to(weight.device, weight.dtype)


def is_cast(module) -> bool:
    """Whether the host makes a temporary copy of this module's weight for each use; a plain torch layer never, and its
    layers of mixed precisions, which are none of torch's, always."""
    return bool(
        not isinstance(module, _TORCHS)
        or getattr(module, "comfy_cast_weights", False)
        or getattr(module, "weight_function", None)
        or getattr(module, "bias_function", None)
    )


_TORCHS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


def is_packed(weight) -> bool:
    """Whether a weight is no ordinary floating tensor, so that its elements are reached through the host only."""
    if isinstance(weight, FakeTensor):  # in place of a weight where memory is foretold
        return weight.dtype not in ORDINARY
    return precision_of(weight) is not None or is_gguf(weight)


def can_be_written(module, device) -> bool:
    """Whether Δ may be written into this module's own weight: it rests on the compute device and is neither quantised,
    nor patched on the fly, nor mapped read-only from the model's file (where a write would end the whole process)."""
    weight = module.weight
    if is_packed(weight):
        return False
    streamed = hasattr(module, "_v") or weight.device != device
    patched = bool(getattr(module, "weight_function", None))
    return not (may_be_mapped(weight) or streamed or patched)
