"""How much memory a training takes: what it consists of, what it is compared with, and what to do if it is too much."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..backward.store import Store
from ..wording import GB, MB, Sentence, readable_size, rounded
from .simulation import LiveBytes

# Δ, its gradient and the last good values of it, fp32 each.
VECTORS = 3
# Bytes per trained element that exist for a while between steps: the checks of a step; and where the vector is on the
# CPU, its copy in a delta or a snapshot.
CHECKS, COPIES = 6, 10
# fp64 matrices of a weight's shorter side that its low-rank gradient holds: Gram matrix, eigenvectors, their product
# with a copy of one, and what the decomposition works in.
LOW_RANK_MATRICES = 6
# Elements whose optimizer is asked what it keeps: enough for those that treat short vectors differently.
PROBE = 1 << 16
# Bytes per element of a step that no operator shows: torchao's compiled one holds both moments in fp32, and that of
# bitsandbytes on the CPU unpacks all it works with. Both as seen in a process that takes one.
COMPILED, UNPACKED = 8, 20
# How torch, its libraries and Python say that memory ran out, where the class of the error does not.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "bad_alloc")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device that trains, at the peak of a run.

    weights: the model, and what the host keeps of it to undo its patches
    sparse_state: Δ, its gradient, the optimizer's moments, the last good values, the index and the base values
    activations: what a forward and backward, or the work between two steps, holds for a while
    present: how much of it was there when the estimate was made
    """

    weights: int
    sparse_state: int
    activations: int
    present: int

    @property
    def total(self) -> int:
        """All three together: the peak."""
        return self.weights + self.sparse_state + self.activations

    @property
    def to_come(self) -> int:
        """What was not there yet when the estimate was made."""
        return self.total - self.present

    def __str__(self) -> str:
        unit, name = (GB, "GB") if self.total >= GB else (MB, "MB")
        parts = {"weights": self.weights, "sparse state": self.sparse_state, "activations": self.activations}
        listed = ", ".join(f"{part} {rounded(size / unit)}" for part, size in parts.items())
        return f"about {rounded(self.total / unit)} {name}: {listed}"


def bytes_of(tensors: Iterable[torch.Tensor], device: torch.device) -> int:
    """Size of the storages on `device` under some tensors, each once."""
    plain = (part for tensor in tensors for part in _plain_parts(tensor) if part.device == device)
    storages = {s._cdata: s.nbytes() for s in (part.untyped_storage() for part in plain)}
    return sum(storages.values())


def _plain_parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensor, or what one of several tensors (a quantised one: its bytes and its scales) is made of."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _plain_parts(getattr(tensor, name))


@dataclass(frozen=True)
class SparseState:
    """Bytes of what belongs to the trained elements: `kept` during the run, `present` of it before the first step, and
    at most `between_steps` more for a while."""

    kept: int
    present: int
    between_steps: int


def sparse_state(store: Store, optimizer: torch.optim.Optimizer) -> SparseState:
    """Of a run that is about to begin, with an optimizer over `store.values`."""
    values, device = store.values.detach(), store.values.device
    vector = bytes_of([values], device)
    moments, working = optimizer_bytes(optimizer)
    present = bytes_of(_tensors(store), device) + vector  # the last good values are there too
    per_element = max(CHECKS, COPIES if device.type == "cpu" else 0)
    return SparseState(
        kept=present + (VECTORS - 2) * vector + round(moments * len(values)),
        present=present,
        between_steps=round(max(per_element, working) * len(values)),
    )


def _tensors(store: Store) -> list[torch.Tensor]:
    frozen = [group for group in store.frozen if group is not None]
    segments = [*store.support, *(group.segment for group in frozen)]
    tensors = [store.values.detach(), *(group.values for group in frozen)]
    tensors += [tensor for segment in segments for tensor in (segment.crow, segment.col)]
    return tensors + [base for base in (*store.base, *(group.base for group in frozen)) if base is not None]


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """Bytes per element that an optimizer keeps, and that it needs beyond them during a step: seen in one step of
    another one of its kind, over a short vector."""
    group, kind = optimizer.param_groups[0], type(optimizer)
    accepted = inspect.signature(kind).parameters
    options = {name: value for name, value in group.items() if name in accepted and name != "params"}
    probe = torch.nn.Parameter(torch.zeros(PROBE, device=group["params"][0].device))
    probe.grad = torch.zeros_like(probe)
    other = kind([probe], **options)
    if _has_class_from("torchao", kind):  # its step is compiled, and then cannot be watched
        other.step()
        kept = (tensor for value in other.state[probe].values() for tensor in _parts(value))
        return bytes_of(kept, probe.device) / PROBE, COMPILED
    with LiveBytes() as memory:
        other.step()
    working = (memory.peak - memory.live) / PROBE
    if probe.device.type == "cpu" and _has_class_from("bitsandbytes", kind):
        working = max(working, UNPACKED)
    return memory.live / PROBE, working


def _has_class_from(package: str, kind: type) -> bool:
    return any(parent.__module__.partition(".")[0] == package for parent in kind.__mro__)


def _parts(value) -> Iterator[torch.Tensor]:
    """A tensor, or those that it consists of, if it is one of a class of its own."""
    if isinstance(value, torch.Tensor) and hasattr(value, "__tensor_flatten__"):
        for name in value.__tensor_flatten__()[0]:
            yield from _parts(getattr(value, name))
    elif isinstance(value, torch.Tensor):
        yield value


def low_rank_bytes(store: Store) -> int:
    """Bytes that the low-rank loss holds at most between steps."""
    side = max(min(segment.rows, segment.columns) for segment in store.support)
    return LOW_RANK_MATRICES * 8 * side**2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the GPU or of the computer, was not enough."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def shortage(estimate: MemoryEstimate, free: int, advice: str) -> str | None:
    """A warning if what is still to come of an estimate exceeds the `free` bytes of the device, otherwise None."""
    missing = estimate.to_come - free
    if missing <= 0:
        return None
    return Sentence(
        "This training needs {estimate}. That is about {missing} more than is free now, so it will probably run "
        "out of memory. {advice}", estimate=str(estimate), missing=readable_size(missing), advice=advice,
    )


def out_of_memory_advice(
    estimate: MemoryEstimate | None,
    *,
    gradient_checkpointing: bool,
    batch_size: int,
    grad_accumulation: int,
    setting: Callable[[str], str] = str,
) -> str:
    """The settings that make a training need less memory, in the order in which they help most.

    setting: the name of one → what a person sets
    """
    activations, sparse = (estimate.activations, estimate.sparse_state) if estimate else (1, 0)
    knobs = [(0.44 * activations, "train on smaller pictures (three quarters of their width and height)"),
             (0.5 * sparse, "train fewer weights (half the density or count, or a lower threshold)")]
    if batch_size > 1:
        smaller = batch_size // 2
        parts = math.ceil(batch_size * grad_accumulation / smaller)
        knobs.append((0.5 * activations,
                      f"set {setting('batch_size')} to {smaller} and {setting('grad_accumulation')} to {parts}, which "
                      "trains the same"))
    if not gradient_checkpointing:
        knobs.append((0.6 * activations, f"switch {setting('gradient_checkpointing')} on"))
    knobs.sort(key=lambda knob: -knob[0])
    return "To need less, the setting that helps most first: " + "; ".join(text for _, text in knobs) + "."
