"""How a module of a loaded ComfyUI model reaches its weight, and whether that weight may be written."""

from contextlib import contextmanager

import comfy.memory_management
import comfy.ops

from ....sara_core.backward.access import AddedCopy


class HostWeight:
    """A WeightAccess (sara_core/backward/access.py) through the host's own cast: whatever dtype, device and patches the
    host would compute with, this computes with.

    added: adds Δ to a copy of what the host hands out, for weights that are streamed, mapped or patched on the fly;
        None for weights that Δ is written into, and for frozen ones
    """

    def __init__(self, added: AddedCopy | None = None):
        self.added = added

    @contextmanager
    def tensors(self, module, like):
        if not is_cast(module):
            weight, bias, cast = module.weight, module.bias, None
        else:
            weight, bias, cast = comfy.ops.cast_bias_weight(module, like, offloadable=True)
        try:
            yield (weight if self.added is None else self.added.add(weight, module.weight.dtype)), bias
        finally:
            if cast is not None:
                comfy.ops.uncast_bias_weight(module, weight, bias, cast)


def is_cast(module) -> bool:
    """Whether the host makes a temporary copy of this module's weight for each use; a plain torch layer never."""
    return bool(
        getattr(module, "comfy_cast_weights", False)
        or getattr(module, "weight_function", None)
        or getattr(module, "bias_function", None)
    )


def can_be_written(module, device) -> bool:
    """Whether Δ may be written into this module's own weight: it rests on the compute device and is neither patched
    on the fly nor mapped read-only from the model's file (where a write would end the whole process)."""
    weight = module.weight
    mapped = hasattr(weight.untyped_storage(), "_comfy_tensor_file_slice")
    may_be_mapped = weight.device.type == "cpu" and getattr(comfy.memory_management, "aimdo_enabled", False)
    streamed = hasattr(module, "_v") or weight.device != device
    patched = bool(getattr(module, "weight_function", None))
    return not (mapped or may_be_mapped or streamed or patched)
