"""Reading and writing single elements of a weight by flat position.

Positions are flat in *logical* (row-major) order whatever the memory layout, so a channels-last convolution and a
contiguous one share the same positions. Indices are int32 or int64, on the weight's device.
"""

import torch

# Wider types keep their own precision: a float64 weight is not squeezed through float32.
_ARITHMETIC_FLOOR = torch.float32
# What add_sparse_ works on at a time: its temporaries, up to 40 bytes per element, stay small beside a large delta.
_CHUNK = 2**20


def memory_view(weight: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A 1-D view of the memory under `weight`, and the places in it of the flat logical positions `indices`."""
    weight = weight.detach()
    if weight.is_contiguous():
        return weight.view(-1), indices
    span = 1 + sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride()))
    remaining = indices.long()
    places = torch.zeros_like(remaining)
    for size, stride in zip(reversed(weight.shape), reversed(weight.stride())):
        places += (remaining % size) * stride
        remaining = remaining // size
    return weight.as_strided((span,), (1,), weight.storage_offset()), places


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


def added(base: torch.Tensor, values: torch.Tensor, strength: float) -> torch.Tensor:
    """round(float32(base) + strength · values), elementwise, in the dtype of `base`.

    The product is rounded before the sum: torch's fused `alpha` rounds differently in its vectorised and scalar
    loops, and the same delta must give the same bits whatever the position.
    """
    dtype = torch.promote_types(base.dtype, _ARITHMETIC_FLOOR)
    return (base.to(dtype) + values.to(dtype) * strength).to(base.dtype)


def add_sparse_(
    weight: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, strength: float = 1.0
) -> torch.Tensor:
    """weight[indices] = round(float32(weight[indices]) + strength · values), in place; returns weight.

    Indices must be unique. The memory it takes, at most 40 MiB, does not grow with the delta.
    """
    with torch.inference_mode(weight.is_inference()), torch.no_grad():
        for part, change in zip(indices.split(_CHUNK), values.split(_CHUNK)):
            if weight.dtype in (torch.float32, torch.float64) and weight.device.type == "cpu":
                # Reads and writes each element at once, in two thirds of the time. In fp16 and bf16 it would round the
                # change before the sum, and on a GPU it adds atomically, which nothing here needs.
                memory, places = memory_view(weight, part)
                memory.index_add_(0, places, change.to(weight.dtype) * strength)
            else:
                scatter_(weight, part, added(gather(weight, part), change, strength))
    return weight


def union_sum(
    first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of two sparse vectors (indices int32 [n] strictly increasing, values fp32 [n]) over all their positions."""
    if torch.equal(first[0], second[0]):
        return first[0], first[1] + second[1]
    indices, slots = torch.unique(torch.cat([first[0], second[0]]), return_inverse=True)
    values = torch.zeros(len(indices), dtype=torch.float32, device=indices.device)
    # Each operand has a position at most once, so two plain writes add without index_add's order of summation.
    values[slots[: len(first[0])]] = first[1]
    values[slots[len(first[0]) :]] += second[1]
    return indices, values


def shared_count(first: torch.Tensor, second: torch.Tensor) -> int:
    """How many positions two strictly increasing index vectors have in common."""
    if torch.equal(first, second):
        return len(first)
    together = torch.cat([first, second]).sort().values
    return int((together[1:] == together[:-1]).sum())
