"""The memory of a forward and backward, found without computing anything.

They run through the very modules that will be trained, checkpointing and all, on tensors that have a shape, a dtype
and a device but no content (torch's fake tensors), while every storage that an operator makes is counted for as long
as it lives. Python and autograd run as usual, so what the model keeps, frees and recomputes is what it will in the run.
"""

import functools
import gc
import itertools
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..backward.store import Store
from ..backward.weight_gradient import DENSE_BYTES, cpu_route

# A storage of torch's on the GPU begins at a multiple of this.
ALIGNMENT = 512
# Vectors as long as a segment that a sampled product holds: result, and values and columns of a copy of its pattern.
SAMPLED_PRODUCT_VECTORS = 3
# Chunks of one layer's gradient are alike; the third begins when the first is gone.
CHUNKS = 3

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_Cache = type(functools.lru_cache(lambda: None))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operators make: `live` now, and at their `peak`."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for tensor in _new_tensors(func, results):
            self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.live + _unseen_bytes(func, args, results))
        return results

    def _count(self, storage):
        key, size = storage._cdata, -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
        if key in self._storages:
            return

        def freed(_):
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, freed)
        self.live += size


def _new_tensors(func, results) -> Iterator[torch.Tensor]:
    """The tensors that an operator returned, without views of its arguments and arguments changed in place."""
    returned = func._schema.returns
    for result, description in zip(results if len(returned) > 1 else (results,), returned):
        if description.alias_info is None:
            for tensor in result if isinstance(result, (list, tuple)) else (result,):
                if isinstance(tensor, torch.Tensor):
                    yield tensor


def _unseen_bytes(func, args, results) -> int:
    """What an operator takes for itself: on the CPU, convolutions copy what they take, and their output, from and into
    a layout of their own."""
    if func is torch.ops.aten.convolution.default:
        copied = args[0], args[1], results
    elif func is torch.ops.aten.convolution_backward.default:
        copied = args[0], args[2]
    else:
        return 0
    return sum(tensor.numel() * tensor.element_size() for tensor in copied if tensor.device.type == "cpu")


@contextmanager
def simulated(model: torch.nn.Module, store: Store) -> Iterator[LiveBytes]:
    """Inside, whatever is computed in this thread has no content, and its memory is counted.

    model: with attached layers; its parameters are there already and are not counted
    store: of those layers; it gets no gradient, but the gradients take their memory

    Afterwards both are what they were, attribute by attribute, and no random number has been drawn. Raises whatever
    the model's code or torch raises where the control flow depends on the content of a tensor.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    memory = LiveBytes()
    with ExitStack() as undo:
        undo.callback(_forget, model, memory)
        undo.enter_context(_attributes_kept(model))
        undo.callback(setattr, store, "__class__", type(store))
        store.__class__ = _StoreWithoutContent
        undo.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        _empty_parameters(model)
        undo.enter_context(memory)
        yield memory


def _empty_parameters(model: torch.nn.Module) -> None:
    """Real parameters would do, but torch knows a short cut for operators whose arguments all have no content."""

    @functools.cache
    def empty(*description):
        shape, stride, dtype, device = description
        return torch.empty_strided(shape, stride, dtype=dtype, device=device)

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if type(parameter) in _PLAIN:
                module._parameters[name] = empty(
                    parameter.shape, parameter.stride(), parameter.dtype, parameter.device
                )


class _StoreWithoutContent(Store):
    """Takes gradients and hands out positions that have the size of the real ones."""

    def take(self, number, op, x, grad_output, route):
        segment = self.support.segments[number]
        for possible in _possible_routes(route, op, segment, x, grad_output):
            (_dense_chunks if possible == "dense" else _sampled_products)(op, segment, x, grad_output)

    def take_dense(self, number, gradient):
        gradient.new_empty(len(self.support.segments[number]), dtype=torch.float32)

    def whole(self, number):
        frozen = self.frozen[number]
        count = len(self.support.segments[number]) + (0 if frozen is None else len(frozen.segment))
        device = self.values.device
        return torch.empty(count, dtype=torch.int64, device=device), torch.empty(count, device=device)


def _possible_routes(route: str, op, segment, x, grad_output) -> tuple[str, ...]:
    if route != "auto":
        return (route,)
    if x.device.type != "cpu":
        return ("csr", "dense")  # kernels take no more than csr
    return (cpu_route(op, segment, x, grad_output),)


def _sampled_products(op, segment, x, grad_output):
    for _factors in itertools.islice(op.weight_gradient_factors(x, grad_output, 0, torch.float32), CHUNKS):
        x.new_empty(SAMPLED_PRODUCT_VECTORS * len(segment))


def _dense_chunks(op, segment, x, grad_output):
    # While a chunk is computed the one before it is still there.
    x.new_empty(min(2 * DENSE_BYTES // x.element_size(), segment.rows * segment.columns))


@contextmanager
def _attributes_kept(model: torch.nn.Module):
    """A module that keeps something of its last input for the next one must not find it without content."""
    with ExitStack() as undo:  # which goes on with the other modules when one fails
        for module in model.modules():
            undo.callback(_give_back, module, {name: (value, _copied(value)) for name, value in vars(module).items()})
        yield


def _give_back(module: torch.nn.Module, attributes: dict[str, tuple]) -> None:
    for name in vars(module).keys() - attributes.keys():
        del vars(module)[name]
    for name, (value, content) in attributes.items():
        vars(module)[name] = value
        # Some refuse whatever would change them, as the configurations of diffusers' models do: these did not change.
        if content is not None and _objects_in(value) != _objects_in(content):
            value.clear()
            value.update(content) if isinstance(value, dict) else value.extend(content)


def _copied(value) -> dict | list | None:
    if isinstance(value, dict):
        return dict(value)
    return list(value) if isinstance(value, list) else None


def _objects_in(value: dict | list) -> list[int]:
    return [id(one) for one in ((*value, *value.values()) if isinstance(value, dict) else value)]


def _forget(model: torch.nn.Module, memory: LiveBytes) -> None:
    """Empty the caches of the functions in the model's files, if anything still holds a tensor without content."""
    if memory.live:
        gc.collect()
    if memory.live:
        files = {type(module).__module__ for module in model.modules()}
        for cache in gc.get_objects():
            if type(cache) is _Cache and cache.__module__ in files:  # isinstance would ask proxies for theirs
                cache.cache_clear()
