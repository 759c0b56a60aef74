"""Deltas in the weights of a host's model: written in place, with the elements that were there before beside them.

All that is wanted of one weight is added up in float32 and rounded once. Where the host itself writes weights (LoRAs
that it merges into them), it says so for a layer: the deltas come off it first, so that the host sees and copies its
own values only, and lie on what it has made afterwards.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import NamedTuple

import torch

from sara_core.delta import SparseEntry
from sara_core.delta.delta import check_range
from sara_core.delta.in_place import InPlaceChange
from sara_core.errors import DeltaError
from sara_core.tensors.elements import union_sum
from sara_core.wording import counted, listed

Part = tuple[SparseEntry, float]

# Elements of a weight by which it is seen that something else has written it: a merge or another checkpoint leaves
# hardly one as it was, and looking at all of them would take longer than restoring them.
_LOOKED_AT = 256


class Place(NamedTuple):
    """A parameter of a model, and the modules in whose name the host writes it: its own, or one around that."""

    weight: torch.nn.Parameter
    layers: tuple[torch.nn.Module, ...]


class _Written:
    """What is wanted of one weight, on it or lifted off. parts: entries with their strengths, at least one

    Each part has the base values of its own elements, whose positions are the delta's: the sum of several deltas and
    its positions would take three times as much. An element of several parts has the same base value in each.

    lost: takes the name if something else has written the weight, so that it was not restored
    """

    def __init__(self, name: str, place: Place, lost: list[str]):
        self._name, self.place, self._lost = name, place, lost
        self._kept: list[InPlaceChange] = []
        self._seen: InPlaceChange | None = None  # what is written, or a few elements of it: to see whether it still is
        self.parts: Sequence[Part] = ()

    def write(self, parts: Sequence[Part]) -> None:
        """Bring the weight to these parts. Raises DeltaError, with the base on the weight, if an element gets too large
        for its dtype."""
        alone = len(parts) == len(self.parts) == 1 and parts[0][0] is self.parts[0][0]
        if self._seen is not None and alone and self._seen.is_in_place(_LOOKED_AT):
            self.parts = parts
            self._write(self._seen, parts[0][1])
        elif self._seen is None or not same(parts, self.parts):
            self.lift()
            self.parts = parts
            self.lower()

    def lift(self) -> None:
        """Every bit that was on the elements, unless something else has written them since: then it stays."""
        (kept, self._kept), (seen, self._seen) = (self._kept, []), (self._seen, None)
        if seen is None or seen.weight.is_meta:
            return
        if not seen.is_in_place(_LOOKED_AT):
            self._lost.append(self._name)
            return
        for change in kept:
            change.restore()

    def lower(self) -> None:
        """Put what is wanted on the weight as it is now. Raises as `write`."""
        if self._seen is not None:
            return
        weight = self.place.weight
        self._kept = [InPlaceChange(weight, entry.indices, entry.values) for entry, _ in self.parts]
        if len(self.parts) == 1:
            self._seen = self._kept[0]
            self._write(self._seen, self.parts[0][1])
        else:
            entry, strength = summed(self.parts)
            whole = InPlaceChange(weight, entry.indices, entry.values)
            some = slice(None, None, max(1, len(entry.indices) // _LOOKED_AT))
            self._seen = InPlaceChange(weight, entry.indices[some].clone(), entry.values[some].clone())
            self._write(whole, strength)
            self._seen.write(strength)  # the same values again

    def _write(self, change: InPlaceChange, strength: float) -> None:
        try:
            check_range(self._name, change.base, change.values, strength)
        except BaseException:
            self.lift()
            raise
        change.write(strength)


class InPlace:
    """What is on the weights of one model. Calls come one at a time, also from within a forward of the model.

    say: is told, for people, what went otherwise than wanted: a weight that something else has written, so that it was
        not restored, or one that a delta no longer fits into
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._lost: list[str] = []
        self._written: dict[str, _Written] = {}
        self._of_layer: dict[torch.nn.Module, list[_Written]] = {}

    def bring(self, places: Mapping[str, Place], wanted: Mapping[str, Sequence[Part]]) -> None:
        """Bring the weights to what is wanted, and all others that were changed back to their own bits.

        places: the model's parameters by their names; wanted: name → the parts that are added up on it, at least one
        Raises DeltaError if an element gets too large for its dtype; then nothing is on any weight.
        """
        try:
            for name in [name for name, written in self._written.items() if not self._stays(name, places, wanted)]:
                self._take(name)
            for name, parts in wanted.items():
                if name not in self._written:
                    self._add(name, places[name])
                self._written[name].write(parts)
        except BaseException:
            self.lift_all()
            raise
        finally:
            self._tell_lost()

    def lift_all(self) -> None:
        """Every weight has its own bits, and nothing is wanted any more."""
        for name in list(self._written):
            self._take(name)
        self._tell_lost()

    def names(self) -> list[str]:
        """The weights of which something is wanted."""
        return list(self._written)

    def layers(self) -> list[torch.nn.Module]:
        """Those of whose weights something is wanted."""
        return list(self._of_layer)

    def is_on(self, layer: torch.nn.Module) -> bool:
        """Whether something is wanted of a weight that the host writes in this layer's name."""
        return layer in self._of_layer

    @contextmanager
    def lifted(self, layer: torch.nn.Module):
        """While the host writes a layer's weights: the deltas are off, and lie on what it has left afterwards."""
        own = self._of_layer.get(layer, ())
        for written in own:
            written.lift()
        try:
            yield
        finally:
            self._tell_lost()
            for written in own:
                self._lower_again(written)

    def _lower_again(self, written: _Written) -> None:
        """In the midst of a picture, which an element that gets too large must not end."""
        try:
            written.lower()
        except DeltaError as error:
            self._say(str(error))

    def _tell_lost(self) -> None:
        if self._lost:
            self._say(
                f"Something else has written {counted(len(self._lost), 'weight')} while deltas were on: "
                f"{listed(self._lost)}. What they have now was left. Load the checkpoint anew, should pictures look "
                "wrong."
            )
            self._lost.clear()

    def _stays(self, name: str, places: Mapping[str, Place], wanted: Mapping[str, Sequence[Part]]) -> bool:
        return name in wanted and places[name].weight is self._written[name].place.weight

    def _add(self, name: str, place: Place) -> None:
        self._written[name] = written = _Written(name, place, self._lost)
        for layer in place.layers:
            self._of_layer.setdefault(layer, []).append(written)

    def _take(self, name: str) -> None:
        written = self._written.pop(name)
        for layer in written.place.layers:
            own = self._of_layer[layer]
            own.remove(written)
            if not own:
                del self._of_layer[layer]
        written.lift()


def same(parts: Sequence[Part], others: Sequence[Part]) -> bool:
    """Whether the sum of both is the same one for certain."""
    return len(parts) == len(others) and all(a is b and s == t for (a, s), (b, t) in zip(parts, others))


def summed(parts: Sequence[Part]) -> Part:
    """Σ strength · Δ in float32, over the positions of all, at strength 1; of one part, at least one, that itself."""
    if len(parts) == 1:
        return parts[0]
    scaled = [(entry.indices, entry.values.float() * strength) for entry, strength in parts]
    return SparseEntry(*reduce(union_sum, scaled), parts[0][0].shape), 1.0
