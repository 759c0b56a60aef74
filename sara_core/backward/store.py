"""The trained vector Δ, its gradient, and the way its values reach the live weights.

Δ starts at 0 and is what is trained, saved and scaled; nothing is ever recovered by subtraction. On the support a
live weight is round(base + Δ), one rounding to the weight's dtype, from base values that are kept untouched.

A re-selection (the paper's progressive parameter adjustment) *freezes* some elements: they keep their values in the
delta and in the model, and leave the vector.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from ..delta import SparseDelta, SparseEntry
from ..errors import DeltaError, TrainingError
from ..files.saved_state import LARGEST_COUNT, damaged, fields, sequence, tensor, text, whole_number
from ..tensors.elements import gather, overwrite_, scatter_
from .ops import LayerOp
from .support import Segment, Support
from .weight_gradient import add_weight_gradient_
from .write_back import WriteBack, runs

# Threads that write weights on the CPU at once: it is the memory that limits them, and numpy lets others run meanwhile.
WRITING_THREADS = 4
# Trained elements from which they are worth it: of a few in each weight, most time goes into asking for it.
WORTH_THREADS = 20_000_000
# What a thread writes at a time: what it takes for that, some 40 bytes an element, stays with it afterwards.
THREAD_ELEMENTS = 1 << 18


class WeightHolder(Protocol):
    """What a weight is found in, now and after it was moved or replaced: a layer, a parameters.ParameterOf, or what
    unpacks a quantised one."""

    @property
    def weight(self) -> torch.Tensor:
        """The weight, floating point, of its segment's shape; where Δ is written into it, a copy would not do."""
        ...


@dataclass
class Frozen:
    """The elements of one weight whose training is over: positions, Δ in fp32, and base values as in the store."""

    segment: Segment
    values: torch.Tensor
    base: torch.Tensor | None


class Store:
    """Δ of all segments as one fp32 Parameter.

    values: fp32 [nnz of the support], the Parameter an optimizer sees; its .grad is written by the layers' backward
    base: per segment the base values in the weight's own dtype, or None where Δ is added to a copy of the weight
    frozen: per segment the elements that left the vector, or None
    device: where Δ is and is trained
    """

    def __init__(self, support: Support, device: torch.device | str | None = None):
        self.support = support
        self.values = torch.nn.Parameter(torch.zeros(support.nnz, dtype=torch.float32, device=device))
        self.base: list[torch.Tensor | None] = [None] * len(support)
        self.frozen: list[Frozen | None] = [None] * len(support)
        self.holders: list[WeightHolder | None] = [None] * len(support)
        self.reached = [False] * len(support)
        self._digests = [""] * len(support)
        # What writes weights together, by the numbers of their segments; None until it is needed after a change.
        self._writing: list[tuple[list[int], WriteBack]] | None = None

    def bind(self, number: int, holder: WeightHolder, in_place: bool) -> None:
        """Tie segment `number` to the weight that `holder.weight` is, now and after it was moved or replaced.

        in_place: `write` brings that weight up to date; otherwise whoever computes with it adds Δ to a copy
        """
        # A weight that is not written may rest on another device than the one its layer computes on.
        weight = holder.weight  # once: it may be unpacked anew each time it is asked for
        device = weight.device if in_place else self.values.device
        segment = self.support.segments[number] = self.support.segments[number].to(device)
        base = gather(weight, segment.flat().to(weight.device))
        self._digests[number] = _digest(segment, base)
        self.holders[number] = holder
        self._writing = None
        if in_place:
            self.base[number] = base

    @property
    def base_fingerprint(self) -> str:
        """Identity of the base under this support: hex digest over names, shapes, positions and base values."""
        return hashlib.blake2b("".join(self._digests).encode(), digest_size=16).hexdigest()

    def trains(self, number: int) -> bool:
        """Whether a segment has elements to train; all of them may have been frozen."""
        return len(self.support.segments[number]) > 0

    def take(self, number: int, op: LayerOp, x: torch.Tensor, grad_output: torch.Tensor, route: str) -> None:
        """Add what one use of a layer contributes to the gradient of its segment (see sparse_weight_gradient)."""
        segment = self.support.segments[number]
        add_weight_gradient_(self._gradient(segment), op, segment, x, grad_output, route)
        self.note_use(number)

    def take_dense(self, number: int, gradient: torch.Tensor) -> None:
        """Add the chosen elements of a gradient of the whole parameter, of its shape."""
        position = self.support.segments[number].flat().to(gradient.device)
        self.accumulate(number, gather(gradient, position).to(self.values.device))

    def accumulate(self, number: int, gradient: torch.Tensor) -> None:
        """Add one layer's gradient, fp32 [len(segment)], to the gradient of the vector."""
        self._gradient(self.support.segments[number]).add_(gradient)
        self.note_use(number)

    def note_use(self, number: int) -> None:
        """Called after each use of a weight, in a backward, has added its gradient."""
        self.reached[number] = True

    def _gradient(self, segment: Segment) -> torch.Tensor:
        """A segment's part of the vector's gradient, to be added to."""
        if self.values.grad is None:
            self.values.grad = torch.zeros_like(self.values)
        return self.values.grad[segment.span]

    def unreached(self) -> list[str]:
        """Names of the segments that no backward has reached since the store was made."""
        return [s.name for s, reached in zip(self.support, self.reached) if not reached]

    def base_values(self, number: int) -> torch.Tensor:
        """Base values of one segment, [len(segment)] in the weight's own dtype."""
        if self.base[number] is not None:
            return self.base[number]
        weight = self.holders[number].weight
        return gather(weight, self.support.segments[number].flat().to(weight.device))

    def trained_values(self, number: int) -> torch.Tensor:
        """P_M of one segment: base + Δ before it is rounded to the weight's dtype, fp32 [len(segment)], no graph."""
        values = self.values.detach()[self.support.segments[number].span]
        return self.base_values(number).to(values.device, torch.float32) + values

    def parts(self, number: int) -> list[tuple[Segment, torch.Tensor]]:
        """The elements of one weight that train and, if there are any, those that do so no more, each with Δ (fp32)."""
        segment, frozen = self.support.segments[number], self.frozen[number]
        trained = [(segment, self.values.detach()[segment.span])]
        return trained if frozen is None else [*trained, (frozen.segment, frozen.values)]

    def whole(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Flat positions (int64, sorted) and Δ (fp32) of all elements of one segment, frozen ones included."""
        segment, frozen = self.support.segments[number], self.frozen[number]
        position, values = segment.flat(), self.values.detach()[segment.span]
        if frozen is None:
            return position, values
        order = _merging_order(position, frozen.segment.flat())
        return torch.cat([position, frozen.segment.flat()])[order], torch.cat([values, frozen.values])[order]

    def check_unconverted(self) -> None:
        """Raise TrainingError if the model was converted or moved since its weights were bound."""
        for segment, holder, base in zip(self.support, self.holders, self.base):
            if base is not None and (holder.weight.dtype, holder.weight.device) != (base.dtype, base.device):
                raise TrainingError(
                    f"'{segment.name}' was {base.dtype} on {base.device} when training began and is now "
                    f"{holder.weight.dtype} on {holder.weight.device}: convert and move a model before SaRA is "
                    "constructed."
                )

    @torch.no_grad()
    def write(self, frozen: bool = False) -> None:
        """Bring the live weights that are written in place up to date with Δ.

        frozen: also the elements that train no more, for weights that have been loaded anew
        """
        if self.values.device.type == "cpu":
            self._write_each()
        else:
            self._write_together()
        if frozen:
            for holder, over in zip(self.holders, self.frozen):
                if over is not None and over.base is not None:
                    overwrite_(holder.weight, over.segment.flat(), over.base, over.values)

    def _write_each(self) -> None:
        numbers = [number for number, base in enumerate(self.base) if base is not None]
        at_once = min(WRITING_THREADS, torch.get_num_threads()) if self.support.nnz >= WORTH_THREADS else 1
        if at_once == 1:
            for number in numbers:
                self._write_rows(number, 0, self.support.segments[number].rows)
            return
        parts = [(number, first, last) for number in numbers for first, last in self._parts_of(number)]
        with ThreadPoolExecutor(at_once) as threads:
            list(threads.map(lambda part: self._write_rows(*part), parts))

    def _parts_of(self, number: int) -> Iterator[tuple[int, int]]:
        """Ranges of a segment's rows with about THREAD_ELEMENTS elements each."""
        segment = self.support.segments[number]
        at_a_time = max(1, THREAD_ELEMENTS * segment.rows // max(1, len(segment)))
        for first in range(0, segment.rows, at_a_time):
            yield first, min(first + at_a_time, segment.rows)

    def _write_rows(self, number: int, first: int, last: int) -> None:
        segment, base, values = self.support.segments[number], self.base[number], self.values.detach()
        elements = segment.elements(first, last)
        of_rows = slice(elements.start, elements.stop)
        position = segment.flat(first, last).add_(first * segment.columns)
        overwrite_(self.holders[number].weight, position, base[of_rows], values[segment.span][of_rows])

    def _write_together(self) -> None:
        if self._writing is None:
            self._writing = []
            for numbers in runs(self.support.segments, self.base):
                together = WriteBack([self.support.segments[n] for n in numbers], [self.base[n] for n in numbers])
                self._writing.append((numbers, together))
                for number, base in zip(numbers, together.base):
                    self.base[number] = base
        for numbers, together in self._writing:
            together.write([self.holders[number].weight for number in numbers], self.values.detach())

    @torch.no_grad()
    def restore(self) -> None:
        """Give the live weights back every bit they had."""
        for segment, frozen, holder, base in zip(self.support, self.frozen, self.holders, self.base):
            if base is not None:
                _put_back(holder.weight, segment, base)
                if frozen is not None:
                    _put_back(holder.weight, frozen.segment, frozen.base)

    @contextmanager
    def withdrawn(self) -> Iterator[None]:
        """Inside, the model computes as it did before Δ, and Δ must be left alone; afterwards, whatever was raised, Δ
        and the live weights are what they were. Not for a model whose graph is still to be gone back through."""
        frozen = [over for over in self.frozen if over is not None]
        trained, ended = self.values.detach().clone(), [over.values for over in frozen]
        try:
            with torch.no_grad():
                self.values.zero_()
                for over in frozen:
                    over.values = torch.zeros_like(over.values)
                self.write(frozen=True)
            yield
        finally:
            with torch.no_grad():
                self.values.copy_(trained)
                for over, values in zip(frozen, ended):
                    over.values = values
                self.write(frozen=True)

    @torch.no_grad()
    def freeze(self, over: torch.Tensor) -> None:
        """End the training of some elements; they keep their values. The vector's gradient, if any, shrinks with it.

        over: bool [nnz of the support], true where training is over
        """
        keep = ~over
        self._writing = None
        for number, segment in enumerate(list(self.support)):
            ends, stays, base = over[segment.span], keep[segment.span], self.base[number]
            self.support.segments[number] = segment.part(stays)
            ended = Frozen(segment.part(ends), self.values[segment.span][ends], None if base is None else base[ends])
            self.frozen[number] = _joined(self.frozen[number], ended)
            if base is not None:
                self.base[number] = base[stays]
        gradient = self.values.grad
        self.values.grad = None
        self.values.data = self.values.data[keep]
        self.values.grad = None if gradient is None else gradient[keep]
        self.support.set_offsets()

    @torch.no_grad()
    def thaw(self) -> None:
        """Take every frozen element back into the vector; the gradient is dropped."""
        values = []
        self._writing = None
        for number, (segment, frozen) in enumerate(zip(list(self.support), self.frozen)):
            active = Frozen(segment, self.values[segment.span], self.base[number])
            every = active if frozen is None else _joined(active, frozen)
            self.support.segments[number], self.base[number] = every.segment, every.base
            values.append(every.values)
        self.frozen = [None] * len(self.support)
        self.values.grad = None
        self.values.data = torch.cat(values)
        self.support.set_offsets()

    def ineffective(self, theta: float) -> int:
        """How many of all elements that were ever trained are still below θ: |base + Δ| < θ. Those that are frozen had
        reached it."""
        return sum(int((self.trained_values(number).abs() < theta).sum()) for number in range(len(self.support)))

    def delta(self, metadata: dict[str, str] | None = None) -> SparseDelta:
        """The trained change, on the CPU; entries are copies and stay as they are when training goes on."""
        entries = {}
        for number, segment in enumerate(self.support):
            position, values = self.whole(number)
            entries[segment.name] = SparseEntry(
                position.to("cpu", torch.int32), values.to("cpu", copy=True), segment.shape
            )
        return SparseDelta(entries, metadata)

    def state(self) -> dict:
        """What an exact continuation needs beside the optimizer's state, with all elements, frozen ones included:

        names, shapes, digests: of the weights; the digests identify the base under the support
        indices: int32 [n] of each weight; values: Δ, fp32 over all of them; active: bool, which still train
        """
        position, values, active = [], [], []
        for number, frozen in enumerate(self.frozen):
            index, delta = self.whole(number)
            position.append(index.to(torch.int32))
            values.append(delta)
            trains = torch.ones(len(index), dtype=torch.bool, device=index.device)
            if frozen is not None:
                trains &= ~torch.isin(index, frozen.segment.flat(), assume_unique=True)
            active.append(trains)
        return {
            "names": [segment.name for segment in self.support],
            "shapes": [list(segment.shape) for segment in self.support],
            "digests": list(self._digests),
            "indices": position,
            "values": torch.cat(values),
            "active": torch.cat(active),
        }

    def check_state(self, state: dict) -> int:
        """How many elements still train in `state`, which must come from `state()` of a store over the same support and
        base. Raises DeltaError otherwise; nothing is changed."""
        fields(state, "its trained part", ("names", "shapes", "digests", "indices", "values", "active"))
        weights = len(self.support)
        names = [text(name, "the name of a weight") for name in sequence(state["names"], "the list of weight names")]
        if names != [segment.name for segment in self.support]:
            raise DeltaError("This state trains other weights of the model: use the same selection and patterns.")
        digests = [text(digest, "a base digest") for digest in sequence(state["digests"], "the base digests", weights)]
        differing = [name for name, mine, theirs in zip(names, self._digests, digests) if mine != theirs]
        if differing:
            raise DeltaError(
                "This state was saved over another base model or with other trained elements: "
                f"{len(differing)} of {weights} weights differ, {differing[0]} the first of them. "
                "Load the base it was trained on, and use the same selection."
            )
        indices = sequence(state["indices"], "the list of positions", weights)
        shapes = sequence(state["shapes"], "the list of shapes", weights)
        for number, segment in enumerate(self.support):
            position, _ = self.whole(number)
            saved = tensor(indices[number], f"the positions in {segment.name}", torch.int32, tuple(position.shape))
            sides = sequence(shapes[number], "a shape")
            shape = [whole_number(side, "a side of a weight", 0, LARGEST_COUNT) for side in sides]
            if shape != list(segment.shape) or not torch.equal(saved.to(position.device), position.to(torch.int32)):
                raise damaged(f"the positions in {segment.name} are not those of its base digest")
        total = sum(map(len, indices))
        tensor(state["values"], "the trained vector", torch.float32, (total,))
        active = int(tensor(state["active"], "the list of elements that still train", torch.bool, (total,)).sum())
        if active == 0 < total:
            raise damaged("none of its elements train any more")
        return active

    @torch.no_grad()
    def load_state(self, state: dict) -> None:
        """Take Δ from `state`. Raises what `check_state` raises; nothing is changed then."""
        self.check_state(state)
        self.thaw()
        self.values.copy_(state["values"])
        active = state["active"].to(self.values.device)
        if not active.all():
            self.freeze(~active)


def _put_back(weight, segment, base):
    scatter_(weight, segment.flat(), base.to(weight.dtype))


def _merging_order(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The order that sorts the concatenation of two position vectors."""
    return torch.cat([first, second]).argsort()


def _joined(first: Frozen | None, second: Frozen) -> Frozen:
    """Both groups of elements of one weight as one."""
    if first is None:
        return second
    a, b = first.segment, second.segment
    order = _merging_order(a.flat(), b.flat())
    segment = Segment(a.name, a.shape, a.crow + b.crow, torch.cat([a.col, b.col])[order], 0)
    base = None if first.base is None else torch.cat([first.base, second.base])[order]
    return Frozen(segment, torch.cat([first.values, second.values])[order], base)


def _digest(segment, base: torch.Tensor) -> str:
    digest = hashlib.blake2b(f"{segment.name} {tuple(segment.shape)}".encode(), digest_size=16)
    for part in (segment.crow, segment.col, base.float()):
        digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()
