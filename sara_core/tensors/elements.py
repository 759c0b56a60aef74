"""Reading and writing single elements of a weight by flat position.

Positions are flat in *logical* (row-major) order whatever the memory layout, so a channels-last convolution and a
contiguous one share the same positions. Indices are int32 or int64, on the weight's device.
"""

from collections.abc import Callable

import torch

# Wider types keep their own precision: a float64 weight is not squeezed through float32.
_ARITHMETIC_FLOOR = torch.float32
_WITHOUT_FLOAT64 = ("mps",)
# What add_sparse_ works on at a time: its temporaries, up to 40 bytes per element, stay small beside a large delta.
_CHUNK = 2**20
CACHED = 2**14
# Floating dtype → integers of its size.
_INTEGERS = {
    torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16,
}  # fmt: skip


def has_own_operations(tensor: torch.Tensor) -> bool:
    """Whether the tensor's class decides what operations do to it (quantised ones …): its memory then says little."""
    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def where_float64_is(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of it in the main memory if its device has no 64-bit floating point, as Apple's GPUs."""
    return tensor.cpu() if tensor.device.type in _WITHOUT_FLOAT64 else tensor


def sum_of_squares(values: torch.Tensor) -> float:
    """Σ values², summed up in float64. values: floating, of any shape, on any device"""
    return float(where_float64_is(values).double().square().sum())


def memory_span(tensor: torch.Tensor) -> tuple[int, int]:
    """Addresses of a tensor's first byte and of the one after its last, whatever its memory layout."""
    return tensor.data_ptr(), tensor.data_ptr() + _reach(tensor) * tensor.element_size()


def _reach(tensor: torch.Tensor) -> int:
    """How many places in memory lie between the first and the last element, both included."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))


def overlaps_itself(tensor: torch.Tensor) -> bool:
    """Whether several elements of a strided tensor may lie at one place in memory, as in an expanded one."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def may_overflow(values: torch.Tensor, strength: float, dtype: torch.dtype) -> bool:
    """Whether strength · values could make a finite number of this dtype infinite: not where the largest product is
    below half the distance of the largest numbers, as it is for everything that a training gives.

    values: floating [n], finite
    """
    precision = torch.finfo(dtype)
    largest = max(map(abs, map(float, values.aminmax()))) if len(values) else 0.0
    return largest * abs(strength) >= precision.max * precision.eps / 4


def memory_view(weight: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A 1-D view of the memory under `weight`, without a graph, and the places in it, int [n], of the flat logical
    positions `indices` [n]."""
    return memory_of(weight), places_of(weight, indices)


def memory_of(weight: torch.Tensor) -> torch.Tensor:
    """A 1-D view of the memory under `weight`, without a graph."""
    weight = weight.detach()
    if weight.is_contiguous():
        return weight.view(-1)
    return weight.as_strided((_reach(weight),), (1,), weight.storage_offset())


def places_of(weight: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """The places, int [n], in memory_of(weight) of the flat logical positions `indices`, int [n]."""
    if weight.is_contiguous():
        return indices
    remaining = indices.long()
    places = torch.zeros_like(remaining)
    for size, stride in zip(reversed(weight.shape), reversed(weight.stride())):
        places += (remaining % size) * stride
        remaining = remaining // size
    return places


def gather(weight: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """The elements of `weight` at flat positions `indices` [n], as a new tensor [n] in the weight's dtype."""
    with torch.no_grad():
        memory, places = memory_view(weight, indices)
        return memory.index_select(0, places)


def scatter_(weight: torch.Tensor, indices: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Write `values` [n] (in the weight's dtype) into `weight` at unique flat positions `indices` [n]; returns weight.

    Inference tensors, which a host loads its models as, may only be written inside inference mode: entered here.
    """
    with torch.inference_mode(weight.is_inference()), torch.no_grad():
        memory, places = memory_view(weight, indices)
        memory.index_copy_(0, places.long(), values)
    return weight


def writer_of(memory: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """What writes values, [n] of the dtype of `memory`, to places in it, int64 [n], unique; to be asked for and used in
    the mode in which `memory` may be written. For parts that the cache holds."""
    integers = _INTEGERS.get(memory.dtype)
    if memory.device.type != "cpu" or integers is None or type(memory) is not torch.Tensor:
        return lambda places, values: memory.index_copy_(0, places, values)
    # numpy writes them in three quarters of torch's time. It knows no bfloat16, so all are written as their bits.
    bits = memory.view(integers).numpy()
    # For autograd, which counts torch's own changes, so that nobody computes gradients with a changed weight.
    memory[:0].zero_()

    def write(places: torch.Tensor, values: torch.Tensor) -> None:
        bits[places.numpy()] = values.view(integers).numpy()

    return write


def at_a_time(weight: torch.Tensor, indices: torch.Tensor) -> int:
    """How many of these elements of a weight, [n], are worked on at a time.

    On the CPU small parts stay in the cache from one operation to the next, and no temporary is made of new pages.
    """
    return CACHED if weight.device.type == "cpu" else max(1, len(indices))


def added(base: torch.Tensor, values: torch.Tensor, strength: float) -> torch.Tensor:
    """round(float32(base) + strength · values), elementwise, in the dtype of `base`; where the change is 0, the base
    itself, −0.0 included.

    The product is rounded before the sum: torch's fused `alpha` rounds differently in its vectorised and scalar
    loops, and the same delta must give the same bits whatever the position.
    """
    dtype = torch.promote_types(base.dtype, _ARITHMETIC_FLOOR)
    return (base.to(dtype) - _negated_change(values, strength, dtype)).to(base.dtype)


def _negated_change(values: torch.Tensor, strength: float, dtype: torch.dtype) -> torch.Tensor:
    """−strength · values, with +0.0 for every zero: x − (+0.0) is x for every x, but −0.0 + 0.0 is +0.0."""
    # Two steps: a fused one would make −0.0 of a product that is too small for the dtype.
    return (values.to(dtype) * -strength).add_(0.0)


def overwrite_(
    weight: torch.Tensor, indices: torch.Tensor, base: torch.Tensor, values: torch.Tensor, strength: float = 1.0
) -> torch.Tensor:
    """weight[indices] = round(base + strength · values), from base values that were kept; returns weight.

    Writing again, at any strength, starts from the same base values: nothing adds up. See `scatter_` for what may be
    written, and from where.

    indices: int32 or int64 [n], unique; base: [n] in the weight's dtype; values: floating [n]; all on its device
    """
    with torch.inference_mode(weight.is_inference()), torch.no_grad():
        write, size = writer_of(memory_of(weight)), at_a_time(weight, indices)
        for part, before, change in zip(indices.split(size), base.split(size), values.split(size)):
            write(places_of(weight, part.long()), added(before, change, strength).to(weight.dtype))
    return weight


def add_sparse_(
    weight: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, strength: float = 1.0
) -> torch.Tensor:
    """weight[indices] = round(float32(weight[indices]) + strength · values), in place; returns weight.

    indices: int32 or int64 [n], unique; values: floating [n]; both on the weight's device

    The memory it takes, at most 40 MiB, does not grow with the delta.
    """
    with torch.inference_mode(weight.is_inference()), torch.no_grad():
        for part, change in zip(indices.split(_CHUNK), values.split(_CHUNK)):
            if weight.dtype in (torch.float32, torch.float64) and weight.device.type == "cpu":
                # Reads and writes each element at once, in two thirds of the time. In fp16 and bf16 it would round the
                # change before the sum, and on a GPU it adds atomically, which nothing here needs.
                memory, places = memory_view(weight, part)
                memory.index_add_(0, places, _negated_change(change, strength, weight.dtype), alpha=-1)
            else:
                overwrite_(weight, part, gather(weight, part), change, strength)
    return weight


def union_sum(
    first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of two sparse vectors (indices int32 [n] strictly increasing, values fp32 [n]) over all their positions, in
    the same form."""
    if torch.equal(first[0], second[0]):
        return first[0], first[1] + second[1]
    indices, slots = torch.unique(torch.cat([first[0], second[0]]), return_inverse=True)
    values = torch.zeros(len(indices), dtype=torch.float32, device=indices.device)
    # Each operand has a position at most once, so two plain writes add without index_add's order of summation.
    values[slots[: len(first[0])]] = first[1]
    values[slots[len(first[0]) :]] += second[1]
    return indices, values


def shared_count(first: torch.Tensor, second: torch.Tensor) -> int:
    """How many positions two index vectors, int [n] strictly increasing, have in common."""
    if torch.equal(first, second):
        return len(first)
    together = torch.cat([first, second]).sort().values
    return int((together[1:] == together[:-1]).sum())
