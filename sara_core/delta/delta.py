"""A sparse delta: the changed elements of some weights, what it can be combined with, and how it is applied."""

import itertools
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch

from ..errors import DeltaError, UnsupportedModelError
from ..names.resolve import check_distinct, resolve
from ..names.text_encoders import is_of_text_encoder, titles_of
from ..numbers import checked
from ..tensors.elements import (
    added, has_own_operations, may_overflow, memory_span, overlaps_itself, shared_count, union_sum,
)  # fmt: skip
from ..wording import counted, listed
from . import file_v1
from .entry import SparseEntry, all_finite, check_entry
from .in_place import InPlaceChange
from .own_weights import OwnWeights
from .variants import left_out

__all__ = ["AppliedDelta", "SparseDelta", "SparseEntry"]

WRITABLE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _advice(names: Collection[str]) -> str:
    """What a script does with a file of these tensors that is not a delta, or not only one."""
    if file_v1.is_delta(names):
        return "Get the delta in a file of its own."
    return f"Its tensors are called {listed(names)}: sara_core.conversion.read.read_delta makes deltas of other files."


class SparseDelta:
    """Weight name → SparseEntry, with metadata (text → text).

    Raises DeltaError on construction if an entry is not safe to apply (see entry.check_entry), or a weight has two
    under different names.

    >>> import torch
    >>> from sara_core import SparseDelta, SparseEntry
    >>> entry = SparseEntry(torch.tensor([1, 5], dtype=torch.int32), torch.tensor([0.5, -0.25]), shape=(2, 3))
    >>> SparseDelta({"layer.weight": entry}).save("style.safetensors")
    >>> delta = SparseDelta.load("style.safetensors")
    >>> delta.nnz, delta.density
    (2, 0.3333333333333333)

    >>> weights = {"layer.weight": torch.ones(2, 3)}  # or a module
    >>> handle = delta.apply_(weights, strength=2)
    >>> weights["layer.weight"]
    tensor([[1.0000, 2.0000, 1.0000],
            [1.0000, 1.0000, 0.5000]])
    >>> handle.remove()
    >>> weights["layer.weight"].unique()
    tensor([1.])

    >>> (0.5 * delta + delta).entries["layer.weight"].values
    tensor([ 0.7500, -0.3750])
    """

    def __init__(self, entries: Mapping[str, SparseEntry], metadata: Mapping[str, str] | None = None):
        self.entries = {name: SparseEntry(i, v, tuple(shape)) for name, (i, v, shape) in entries.items()}
        self.metadata = dict(metadata or {})
        check_distinct(self.entries)
        for name, entry in self.entries.items():
            check_entry(name, entry)
        if not all(isinstance(text, str) for pair in self.metadata.items() for text in pair):
            raise DeltaError("A delta's metadata must map text to text; convert numbers with str() or json.dumps().")

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        advice: Callable[[Collection[str]], str] = _advice,
        on_progress: file_v1.Progress | None = None,
    ) -> "SparseDelta":
        """Read a `.safetensors` delta file; raises DeltaError if it is missing, damaged or not a SaRA file.

        advice: what people can do with a file that is not only a delta, by the names of its tensors: a sentence in
            their words, for the error
        on_progress: called with weights done and weights in all; may raise to stop
        """
        delta = cls({})
        try:
            # Checked there: a second time would cost a fifth of it.
            delta.entries, delta.metadata = file_v1.read(path, advice, on_progress)
        except DeltaError as error:
            raise DeltaError(f"Cannot load '{os.path.basename(path)}'. {error}") from error
        return delta

    def save(self, path: str | os.PathLike, dtype: torch.dtype = torch.float32, overwrite: bool = True) -> None:
        """Write the delta to `path`, atomically, with values in `dtype` (float32: bit for bit; bfloat16: small).

        Raises DeltaError if the file cannot be written; an existing file is then left as it was. Without `overwrite`
        it is also left if it appears while the new one is written: NameTakenError.
        """
        file_v1.write(path, self.entries, self.metadata, dtype, overwrite)

    @property
    def nnz(self) -> int:
        """Number of changed elements."""
        return sum(len(entry.indices) for entry in self.entries.values())

    @property
    def density(self) -> float:
        """Changed elements as a share of all elements of the weights named in the delta."""
        return self.nnz / max(1, sum(entry.numel for entry in self.entries.values()))

    def overlap(self, other: "SparseDelta") -> float:
        """Shared positions as a share of the positions of both (intersection over union), 0 … 1; weights of different
        names share none."""
        shared = sum(
            shared_count(entry.indices, other.entries[name].indices)
            for name, entry in self.entries.items()
            if name in other.entries
        )
        return shared / max(1, self.nnz + other.nnz - shared)

    def __add__(self, other: "SparseDelta") -> "SparseDelta":
        """The sum in float32 over the union of both supports; keeps the metadata on which both agree.

        Raises DeltaError for weights of the same name and different shapes, and sums that are too large for float32.
        """
        if not isinstance(other, SparseDelta):
            return NotImplemented
        entries = {name: _in_float32(entry) for name, entry in self.entries.items()}
        for name, entry in other.entries.items():
            entries[name] = _sum(name, entries[name], entry) if name in entries else _in_float32(entry)
        return SparseDelta(entries, dict(self.metadata.items() & other.metadata.items()))

    def __mul__(self, factor: float) -> "SparseDelta":
        """Every change times `factor`, in float32. Raises DeltaError if one is too large then."""
        if not isinstance(factor, (int, float)):
            return NotImplemented
        factor = checked(factor, "The factor of a delta")
        entries = {
            name: SparseEntry(i, in_float32_range(name, v.float() * factor), shape)
            for name, (i, v, shape) in self.entries.items()
        }
        return SparseDelta(entries, self.metadata)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"SparseDelta({self.nnz} changes in {len(self.entries)} weights, density {self.density:.3%})"

    def apply_(self, target: torch.nn.Module | Mapping[str, torch.Tensor], strength: float = 1.0) -> "AppliedDelta":
        """Change the weights of a module or state dict in place: round(float32(weight) + strength · Δ).

        Names may lack or carry the prefixes `diffusion_model.` and `model.diffusion_model.`; adapters of PEFT, and
        modules within torch.compile's, are looked through (own_weights.py). Everything is checked before anything is
        written; a tied weight is changed once; strength 0 writes nothing. On another variant of its model (for
        inpainting …) the change of the first layer is left out, with a warning that names it, if that is all that does
        not fit; so is what is of text encoders that are not in the target.

        Returns a handle whose remove() restores every bit.
        Raises DeltaError for a missing name, another shape, a strength that is not finite or makes an element too large
        for its dtype; UnsupportedModelError, by name, for a weight that cannot be written exactly (quantised, float8,
        integer, meta, sparse, or with several elements at one place in memory), or would have no effect.
        """
        if isinstance(target, torch.nn.Module):
            own = OwnWeights(target)
            handle = AppliedDelta(self._for(own.tensors)._changes_of(own), own.check_same)
        else:
            handle = AppliedDelta(self._for(target)._changes(target))
        try:
            handle.set_strength(strength)
        except BaseException:
            handle.remove()
            raise
        return handle

    def _for(self, weights: Mapping[str, torch.Tensor]) -> "SparseDelta":
        """The delta without its part for text encoders, with a warning, where the target is a diffusion model alone."""
        of_text = {name for name in self.entries if is_of_text_encoder(name)}
        if not of_text or any(name in weights for name in of_text):
            return self
        warnings.warn(f"Left out: the change of {titles_of(of_text)}, which is not in this model.", stacklevel=3)
        return SparseDelta({name: entry for name, entry in self.entries.items() if name not in of_text}, self.metadata)

    def _changes_of(self, own: OwnWeights) -> list[tuple[str, torch.Tensor, SparseEntry]]:
        changes = self._changes(own.tensors)
        found = {name: self.entries[wanted] for wanted, name in resolve(self.entries, own.tensors, "the model").items()}
        own.check_effective(found)
        return changes + SparseDelta(own.entries_of_copies(found))._changes(own.copies)

    def _changes(self, weights: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor, SparseEntry]]:
        """Every weight with its name and entry, checked; names of the same tied weight count once."""
        changes: dict[tuple, tuple[str, torch.Tensor, SparseEntry]] = {}
        names = resolve(self.entries, weights, "the model")
        shapes = {name: tuple(weights[found].shape) for name, found in names.items()}
        skipped = left_out(self.entries, shapes)
        for name, found in names.items():
            if name in skipped:
                continue
            weight, entry = weights[found], self.entries[name]
            check_precision(name, weight)
            _check_in_memory(name, weight)
            check_fits(name, entry, shapes[name])
            memory = (weight.device, weight.data_ptr(), weight.stride())
            if memory not in changes:
                changes[memory] = (name, weight, entry)
            elif not _same(changes[memory][2], entry):
                raise DeltaError(
                    f"'{name}' and '{changes[memory][0]}' are one weight in this model, but the delta changes them "
                    "differently. It was made for a model in which they are separate."
                )
        for sentence in skipped.values():
            warnings.warn(sentence, stacklevel=3)
        return list(changes.values())


class AppliedDelta:
    """What apply_ changed, with the values that were there before. Remove handles of one model last in, first out.

    Any thread may call the methods.
    """

    _live: "weakref.WeakSet[AppliedDelta]" = weakref.WeakSet()
    _order = itertools.count()
    # Of all handles: one asks the others what they change.
    _lock = threading.RLock()

    def __init__(
        self, targets: Sequence[tuple[str, torch.Tensor, SparseEntry]], check: Callable[[], None] = lambda: None
    ):  # fmt: skip
        """targets: the weights, which stay as they are, each with its name and entry; checked
        check: raises if the model does not compute with these weights, or not with them alone, any more
        """
        self._targets, self._check = list(targets), check
        self._changes: list[InPlaceChange] = []
        self._number = -1
        self._overlapping = _overlapping(weight for _, weight, _ in self._targets)
        with self._lock:
            self._live.add(self)

    def set_strength(self, strength: float) -> None:
        """Bring the weights to another strength, from the values that were there before: the same bits as if the delta
        had been applied at this strength at once. At strength 0 every bit is as before.

        Raises DeltaError for a strength that is not finite, after `remove`, or where `remove` does; nothing is changed
        then. For a strength that makes an element too large for its dtype every bit is as before the delta.
        """
        strength = checked(strength, "The strength")
        with self._lock:
            if not self._targets:
                raise DeltaError("This delta was removed from the model: apply it again.")
            self._check_removable()
            if self._changes and strength != 0 and not self._overlapping:
                self._write(strength)
                return
            self._restore()
            if strength != 0:
                self._number = next(self._order)
                self._write(strength)

    def remove(self) -> None:
        """Restore every bit from the kept values; a second call does nothing.

        Raises DeltaError if a delta that was applied later to one of the same weights is still in place, or something
        else has changed the same elements since; UnsupportedModelError if the model computes with copies of them since.
        Nothing is changed then.
        """
        with self._lock:
            self._check_removable()
            self._restore()
            self._targets.clear()

    def _write(self, strength: float) -> None:
        try:
            for number, (name, weight, entry) in enumerate(self._targets):
                if number == len(self._changes):
                    self._changes.append(InPlaceChange(weight, entry.indices, entry.values))
                change = self._changes[number]
                check_range(name, change.base, entry.values, strength)
                change.write(strength)
        except DeltaError:
            self._restore()
            raise

    def _restore(self) -> None:
        for change in reversed(self._changes):
            change.restore()
        self._changes.clear()

    def _check_removable(self) -> None:
        memory = self._memory()
        if any(other._number > self._number and other._memory() & memory for other in self._live):
            raise DeltaError("A delta applied later is still on this model: remove the later one first.")
        if not self._changes:
            return
        self._check()
        if not self._overlapping and not all(change.is_in_place() for change in self._changes):
            raise DeltaError(
                "Something else has changed the same weights since this delta was applied (a LoRA that was fused into "
                "them, a training), and would be lost in part: undo that first, or load the model anew."
            )

    def _memory(self) -> set[tuple]:
        return {(change.weight.device, change.weight.data_ptr()) for change in self._changes}


def _overlapping(weights: Iterable[torch.Tensor]) -> bool:
    """Whether two of the weights share memory, so that one's base values are what the other has written."""
    spans = sorted((str(weight.device), *memory_span(weight)) for weight in weights)
    return any(a[0] == b[0] and b[1] < a[2] for a, b in zip(spans, spans[1:]))


def check_precision(name: str, weight: torch.Tensor) -> None:
    """Raise UnsupportedModelError unless single elements of the weight can be changed without touching others."""
    own_class = has_own_operations(weight)
    if own_class or weight.is_quantized or weight.dtype not in WRITABLE_DTYPES:
        kind = type(weight).__name__ if own_class else str(weight.dtype).removeprefix("torch.")
        raise UnsupportedModelError(
            f"The weight '{name}' is stored as {kind}: a sparse delta would be lost in its rounding. "
            "Use the model in fp16, bf16 or fp32."
        )


def _check_in_memory(name: str, weight: torch.Tensor) -> None:
    if weight.is_meta or weight.layout != torch.strided:
        raise UnsupportedModelError(
            f"The weight '{name}' is not in memory as a plain tensor: load the model first, and offload it afterwards."
        )
    if overlaps_itself(weight):
        raise UnsupportedModelError(
            f"The weight '{name}' has several elements at one place in memory (it was expanded), so that a change of "
            "one would change others: give it memory of its own with clone()."
        )


def check_fits(name: str, entry: SparseEntry, shape: tuple[int, ...]) -> None:
    """Raise DeltaError unless the entry was made for a weight of this shape."""
    if entry.shape != shape:
        raise DeltaError(
            f"'{name}' has shape {list(shape)} in this model, but the delta was made for {list(entry.shape)}. "
            "It belongs to another model: use the one it was trained on, or one of the same family."
        )


def check_range(name: str, base: torch.Tensor, values: torch.Tensor, strength: float) -> None:
    """Raise DeltaError if base + strength · values is too large for the base's dtype somewhere, where the base is not.

    base: the weight's elements at the positions of `values`, [n] both
    """
    if not may_overflow(values, strength, base.dtype):
        return
    after = added(base, values.to(base.device), strength)
    if count := int((after.isinf() & base.isfinite()).sum()):
        raise DeltaError(
            f"At strength {strength:g} the delta makes {counted(count, 'element')} of '{name}' larger than "
            f"{str(base.dtype).removeprefix('torch.')} can hold. Choose a lower strength, or use the model in bf16 or "
            "fp32."
        )


def in_float32_range(name: str, values: torch.Tensor) -> torch.Tensor:
    """`values`, what some arithmetic has made of changes of the weight `name`; DeltaError if some are too large now."""
    if not all_finite(values):
        raise DeltaError(
            f"The changes of '{name}' come out larger than float32 can hold. Lower the weights, factors or strengths."
        )
    return values


def _in_float32(entry: SparseEntry) -> SparseEntry:
    return entry._replace(values=entry.values.float())


def _sum(name: str, first: SparseEntry, second: SparseEntry) -> SparseEntry:
    if first.shape != second.shape:
        raise DeltaError(
            f"These deltas cannot be added: '{name}' is {list(first.shape)} in one and {list(second.shape)} in the "
            "other. Add deltas of the same model."
        )
    second = _in_float32(second)
    indices, values = union_sum((first.indices, first.values), (second.indices, second.values))
    return SparseEntry(indices, in_float32_range(name, values), first.shape)


def _same(first: SparseEntry, second: SparseEntry) -> bool:
    return torch.equal(first.indices, second.indices) and torch.equal(first.values, second.values)
