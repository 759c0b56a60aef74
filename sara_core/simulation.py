"""The memory of a forward and backward, found without computing anything.

They run through the very modules that will be trained, checkpointing and all, on tensors that have a shape, a dtype
and a device but no content (torch's fake tensors), while every storage that an operator makes is counted for as long
as it lives. Operators run as usual in Python, so what the model keeps, frees and recomputes is what it will in the run.
"""

import functools
import gc
import itertools
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .backprop import Attachment, is_attached
from .parameters import TrainedParameters
from .weight_gradient import CPU_CSR_DENSITY, DENSE_BYTES

# Vectors as long as a segment that a sampled product holds: result, and values and columns of a copy of its pattern.
SAMPLED_PRODUCT_VECTORS = 3
# Chunks of one layer's gradient are alike; the third begins when the first is gone.
CHUNKS = 3
# A storage of torch's on the GPU begins at a multiple of this.
ALIGNMENT = 512

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
        return results

    def _count(self, storage):
        key, size = storage._cdata, -storage.nbytes() // ALIGNMENT * -ALIGNMENT
        if key in self._storages:
            return

        def freed(_):
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


def _new_tensors(func, results) -> Iterator[torch.Tensor]:
    """The tensors that an operator returned, without views of its arguments and arguments changed in place."""
    returned = func._schema.returns
    for result, description in zip(results if len(returned) > 1 else (results,), returned):
        if description.alias_info is None:
            for tensor in result if isinstance(result, (list, tuple)) else (result,):
                if isinstance(tensor, torch.Tensor):
                    yield tensor


@contextmanager
def simulated(model: torch.nn.Module) -> Iterator[LiveBytes]:
    """Inside, whatever is computed in this thread has no content, and its memory is counted.

    model: with attached layers; its weights and other real tensors may be used and are not counted

    Afterwards the model is what it was, attribute by attribute, and no random number has been drawn. Raises whatever
    the model's code or torch raises where the control flow depends on the content of a tensor.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    memory = LiveBytes()
    with ExitStack() as undo:
        undo.callback(_forget, model, memory)
        undo.enter_context(_attributes_kept(model))
        for module in model.modules():
            if is_attached(module):
                module._sara = _SimulatedAttachment(module._sara)
            if "_sara_parameters" in vars(module):
                module._sara_parameters = _SimulatedParameters(module._sara_parameters)
        undo.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        undo.enter_context(memory)
        yield memory


class _SimulatedAttachment(Attachment):
    """A layer that takes the memory of another one, for its weight and for its gradient."""

    def __init__(self, real: Attachment):
        super().__init__(real.op, self, real.store, real.number, real.route)
        self.adds = real.number is not None and real.store.base[real.number] is None

    @contextmanager
    def tensors(self, module, like):
        weight, bias = module.weight, module.bias
        copies = []
        if (weight.dtype, weight.device) != (like.dtype, like.device):
            copies.append(like.new_empty(weight.shape))
            bias = None if bias is None else like.new_empty(bias.shape)
        if self.adds:
            copies.append(like.new_empty(weight.shape))
        yield (copies[-1] if copies else weight), bias

    def add_gradient(self, x, grad_output):
        segment = self.store.support.segments[self.number]
        for route in _possible_routes(self.route, segment, x.device):
            (_sampled_product if route == "csr" else _dense_chunk)(self.op, segment, x, grad_output)


class _SimulatedParameters(TrainedParameters):
    """Stand-ins of the size of other ones, whose gradients are forgotten: their elements are few."""

    def __init__(self, real: TrainedParameters):
        super().__init__(real.store, real.numbers)

    def copy(self, number):
        return torch.empty_like(self.store.locations[number].weight)

    def add_gradient(self, number, gradient):
        pass


def _possible_routes(route: str, segment, device) -> tuple[str, ...]:
    if route != "auto":
        return (route,)
    if device.type != "cpu":
        return ("csr", "dense")
    return ("csr",) if len(segment) <= CPU_CSR_DENSITY * segment.rows * segment.columns else ("dense",)


def _sampled_product(op, segment, x, grad_output):
    x, grad_output = x.float(), grad_output.float()
    for _factors in itertools.islice(op.weight_gradient_factors(x, grad_output, 0), CHUNKS):
        x.new_empty(SAMPLED_PRODUCT_VECTORS * len(segment))


def _dense_chunk(op, segment, x, grad_output):
    x.new_empty(min(DENSE_BYTES // x.element_size(), segment.rows * segment.columns))


@contextmanager
def _attributes_kept(model: torch.nn.Module):
    """Modules that keep something of their last input for the next one must not find it without content."""
    before = [(module, {name: (value, _copied(value)) for name, value in vars(module).items()})
              for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            for name in vars(module).keys() - attributes.keys():
                del vars(module)[name]
            for name, (value, content) in attributes.items():
                vars(module)[name] = value
                if isinstance(value, dict):
                    value.clear()
                    value.update(content)
                elif isinstance(value, list):
                    value[:] = content


def _copied(value):
    return value.copy() if isinstance(value, (dict, list)) else None


def _forget(model: torch.nn.Module, memory: LiveBytes) -> None:
    """Empty the caches of the functions in the model's files, if anything still holds a tensor without content."""
    if memory.live:
        gc.collect()
    if memory.live:
        files = {type(module).__module__ for module in model.modules()}
        for cache in gc.get_objects():
            if isinstance(cache, _Cache) and cache.__module__ in files:
                cache.cache_clear()
