"""From the tags of a prompt to changed weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from sara_core.delta import SparseDelta, SparseEntry
from sara_core.errors import DeltaError, SaRAError

from .fitting import Model, fitted, is_of_unet
from .in_place import Part, Place
from .remedies import advice
from .shelf import Shelf, Stamp, stamp
from .tags import Tag


class Weights(Protocol):
    """What puts deltas on a host's model, in the host's way."""

    def bring(self, places: Mapping[str, Place], wanted: Mapping[str, Sequence[Part]]) -> None:
        """See InPlace.bring."""

    def lift_all(self) -> None:
        """Every weight has its own bits, and nothing is wanted any more."""

    def names(self) -> list[str]:
        """The weights of which something is wanted."""


@dataclass
class Outcome:
    """What came of the tags of a prompt.

    lines: for the picture's page: what is not as the tags say, and why; hashes: name in a tag → the first digits of its
    file's SHA-256, for those that are on the model; text_changed: whether weights of text encoders were written
    """

    lines: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    text_changed: bool = False


class _Asked(NamedTuple):
    path: Path | None
    stamp: Stamp | None
    tag: Tag


class _Opened(NamedTuple):
    stamp: Stamp
    delta: SparseDelta


class _Fitted(NamedTuple):
    opened: _Opened
    model: object
    entries: dict[str, SparseEntry]
    lines: list[str]


class Prompted:
    """The deltas of the prompt that is drawn, on the model that draws it.

    A delta stays in memory as long as a tag asks for it.
    """

    def __init__(self, shelf: Shelf, weights: Weights):
        self._shelf, self.weights = shelf, weights
        self._files: dict[Path, _Fitted] = {}
        self._asked: tuple[object, list[_Asked]] = (None, [])
        self._outcome = Outcome()

    def settle(self, model: Callable[[], Model | None], own: object, tags: Sequence[Tag]) -> Outcome:
        """Bring the model to what the tags ask for, and every weight that none of them changes to its own bits.

        A tag whose file is missing, broken or for another model is left out, with a line that says so.

        model: is asked for the model when something is to be done; own: the host's object of it, None while none is
            loaded
        """
        paths = [tag.path or self._shelf.find(tag.name) for tag in tags]
        # Sums of many in float32 hang on their order, which the order of tags is not to decide.
        pairs = sorted(zip(paths, tags), key=lambda pair: (pair[1].name, str(pair[0]), pair[1].text, pair[1].unet))
        asked = [_Asked(path, path and stamp(path), tag) for path, tag in pairs]
        if self._asked == (own, asked):
            return Outcome(self._outcome.lines, self._outcome.hashes)
        self._asked = (None, [])  # until all has been done
        outcome = Outcome()
        described = model() if own is not None and asked else None
        wanted = self._wanted(asked, described, outcome) if described is not None else {}
        before = {name for name in self.weights.names() if not is_of_unet(name)}
        try:
            self.weights.bring(described.places if described is not None else {}, wanted)
        except DeltaError as error:
            outcome.lines.append(str(error))
            outcome.hashes.clear()
        outcome.text_changed = bool(before) or any(not is_of_unet(name) for name in wanted)
        self._files = {path: file for path, file in self._files.items() if path in {one.path for one in asked}}
        self._asked, self._outcome = (own, asked), outcome
        return outcome

    def take_off(self) -> None:
        """Every weight has its own bits; the next tags are looked at anew."""
        self.weights.lift_all()
        self._asked, self._files = (None, []), {}

    def _wanted(self, asked: Sequence[_Asked], model: Model, outcome: Outcome) -> dict[str, list[Part]]:
        wanted: dict[str, list[Part]] = {}
        for path, stamped, tag in asked:
            try:
                file = self._fitted(path, stamped, tag.name, model)
            except SaRAError as error:
                outcome.lines.append(f"{tag.name}: {error}")
                continue
            outcome.lines += [f"{tag.name}: {line}" for line in file.lines]
            outcome.hashes[tag.name] = self._shelf.short_hash(path)
            for name, entry in file.entries.items():
                strength = tag.unet if is_of_unet(name) else tag.text
                if strength != 0:
                    wanted.setdefault(name, []).append((entry, strength))
        return wanted

    def _fitted(self, path: Path | None, stamped: Stamp | None, name: str, model: Model) -> _Fitted:
        if path is None or stamped is None:
            raise DeltaError("There is no file of this name. Put it into models/sara or models/Lora.")
        known = self._files.get(path)
        opened = known and known.opened
        if opened is None or opened.stamp != stamped:
            opened = _Opened(stamped, SparseDelta.load(path, advice))
        if known is None or known.opened is not opened or known.model is not model.own:
            lines: list[str] = []
            known = _Fitted(opened, model.own, fitted(opened.delta, model, lines.append), lines)
            self._files[path] = known
        return known
