"""A device that every machine has and that is not the CPU: computes what the CPU computes, but for rounding, and
refuses what a GPU refuses, tensors of two devices in one operation and NumPy.

    with other_device.there():
        model.to(other_device.NAME)

It is torch's "meta" device by name, whose tensors here have numbers after all, kept on the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

NAME = "meta"
_COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


class DeviceError(RuntimeError):
    """An operation had tensors of the CPU and of the other device."""


class _There(torch.Tensor):
    """A tensor of the other device."""

    @staticmethod
    def __new__(cls, numbers: torch.Tensor):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), storage_offset=numbers.storage_offset(), dtype=numbers.dtype,
            device=NAME,
        )  # fmt: skip
        tensor.numbers = numbers
        return tensor

    def __init__(self, numbers: torch.Tensor):
        pass

    def __repr__(self) -> str:
        return f"there({self.numbers})"

    def __tensor_flatten__(self):
        return ["numbers"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return _There(inner["numbers"])

    is_meta = False

    def data_ptr(self):
        return self.numbers.data_ptr()

    def tolist(self):
        return self.numbers.tolist()

    def numpy(self, *args, **kwargs):
        raise DeviceError("NumPy knows the CPU only")

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _computed(function, args, kwargs or {})


class _Made(TorchFunctionMode):
    """torch.tensor makes a tensor on its device without telling _Mode."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.tensor and _is_named(kwargs.get("device")):
            return function(*args, **{**kwargs, "device": "cpu"}).to(NAME)
        return function(*args, **kwargs)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _computed(function, args, kwargs or {})


def _is_named(device: object) -> bool:
    return device is not None and torch.device(device).type == NAME


def _computed(function, args, kwargs):
    flat, _ = tree_flatten((args, kwargs))
    theirs = [one for one in flat if isinstance(one, _There)]
    ours = [one for one in flat if isinstance(one, torch.Tensor) and not isinstance(one, _There)]
    mixed = [one for one in ours if one.dim() > 0]
    if theirs and mixed and function not in _COPIES and not _indexes_from_here(function, args):
        raise DeviceError(f"{function} has tensors of two devices, {[tuple(one.shape) for one in mixed]} of the CPU")
    named = kwargs.get("device")
    there = bool(theirs) if named is None else _is_named(named)
    inner = {**kwargs, "device": torch.device("cpu")} if named is not None else kwargs
    if function is torch.ops.aten._local_scalar_dense.default:
        return function(args[0].numbers if theirs else args[0])

    def unwrapped(one):
        return one.numbers if isinstance(one, _There) else one

    found = function(*tree_map(unwrapped, args), **tree_map(unwrapped, inner))
    if function is torch.ops.aten.copy_.default:
        return args[0]
    if not there:
        return found
    wrapped = tree_map(lambda one: _There(one) if isinstance(one, torch.Tensor) else one, found)
    return return_and_correct_aliasing(function, args, kwargs, wrapped) if theirs else wrapped


def _indexes_from_here(function, args) -> bool:
    """Torch lets an index lie on the CPU, whatever it is an index of."""
    indexing = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten._index_put_impl_.default)
    return function in indexing and isinstance(args[0], _There) and all(
        isinstance(one, _There) for one in tree_flatten(args[2:])[0] if isinstance(one, torch.Tensor) and one.dim()
    )


@contextmanager
def there() -> Iterator[None]:
    """While the device is there."""
    with _Made(), _Mode():
        yield
