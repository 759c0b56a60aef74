"""Merge, Bake, Extract, Inspect and Convert for a WebUI: names in, what the library reports out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from PIL import Image

from sara_core.charts.density import density_picture
from sara_core.charts.drawing import Sheet
from sara_core.charts.merge import merge_picture
from sara_core.conversion.read import read_delta
from sara_core.conversion.registry import OWN, WRITERS, advice
from sara_core.conversion.remedies import ADAPTER, BASE, CONVERT, MIXED, MODEL, UNKNOWN, Remedies
from sara_core.conversion.write import write_delta
from sara_core.delta import SparseDelta
from sara_core.delta.describe import density_by_block, describe
from sara_core.delta.file_v1 import SUFFIX
from sara_core.errors import DeltaError, NameTakenError
from sara_core.extraction.extract import extract_with_report
from sara_core.merging.block_factors import block_presets, parse_blocks
from sara_core.merging.merge import MergeSettings, merge_with_report
from sara_core.models.bake import bake
from sara_core.numbers import read_list
from sara_core.wording import one_of

from ..file_names import file_name
from .files import chosen

EVERYTHING = "everything"
EXTRACTED_BY = ("density", "count", EVERYTHING)

_CONVERT = "Make a delta of it under Convert."
REMEDIES: Remedies = {
    ADAPTER: _CONVERT,
    CONVERT: _CONVERT,
    MODEL: "Make a delta of it and its base under Extract.",
    MIXED: "Get the delta in a file of its own from where it came from.",
    UNKNOWN: "Choose a file that this extension or ComfyUI's has written.",
    BASE: "choose it as the base.",
}


class Report(NamedTuple):
    """What came of the work, and the same as a picture where there is one."""

    text: str
    picture: Image.Image | None = None


class Files(Protocol):
    """Where a WebUI has its files."""

    def networks(self) -> list[Path]:
        """The folders of deltas and LoRAs; new deltas go in the first."""

    def deltas(self) -> Mapping[str, Path]:
        """Name → file."""

    def checkpoints(self) -> Mapping[str, Path]:
        """Name → file."""

    def checkpoint_folder(self) -> Path:
        """Where new ones go."""

    def refresh(self) -> None:
        """Let the WebUI list its files anew."""


class Tools:
    """What a person at the tab can have done; each answers with a report, and raises SaRAError in words."""

    def __init__(self, files: Files):
        self.files = files

    def deltas(self) -> list[str]:
        """The names of all deltas."""
        return sorted(self.files.deltas())

    def foreign(self) -> dict[str, Path]:
        """What Convert may be given: every file among the networks, and every checkpoint as "checkpoints/…"."""
        found: dict[str, Path] = {}
        for folder in self.files.networks():
            for path in sorted(path for path in folder.rglob("*") if path.suffix in (SUFFIX, ".pt", ".bin")):
                found.setdefault(path.relative_to(folder).as_posix(), path)
        return {**found, **{f"checkpoints/{name}": path for name, path in self.files.checkpoints().items()}}

    def inspect(self, name: str) -> Report:
        """What a delta is."""
        path = self._delta_path(name)
        facts = describe(self._load(path))
        text = f"{path.name}, {path.stat().st_size:,} bytes\n{facts.text()}"
        return Report(text, density_picture(f"{facts.elements:,} changes", facts.blocks).picture)

    def merge(
        self, names: Sequence[str], weights: str, method: str, keep: float, sign: str, seed: int, preset: str,
        blocks: str, target: str,
    ) -> Report:  # fmt: skip
        """Several deltas into one. weights: numbers with commas between, or one for all; empty: 1 each"""
        paths = [self._delta_path(name) for name in names or [""]]
        numbers = read_list(weights, "weights") if weights.strip() else [1.0]
        if len(numbers) not in (1, len(paths)):
            raise DeltaError(f"There are {len(paths)} deltas and {len(numbers)} weights: give one weight for each.")
        factors = (*block_presets()[preset], *parse_blocks(blocks))
        settings = MergeSettings(method, keep, sign, int(seed), factors)
        weighted = numbers * len(paths) if len(numbers) == 1 else numbers
        place = self._new_delta(target)
        merged, report = merge_with_report(list(map(self._load, paths)), weighted, settings, list(names))
        return self._saved(merged, place, report.text(), merge_picture(report))

    def bake(self, checkpoint: str, name: str, strength: float, precision: str, target: str) -> Report:
        """A delta into a checkpoint, as a new file."""
        base = chosen(checkpoint, self.files.checkpoints(), "checkpoint")
        delta, place = self._load(self._delta_path(name)), self._new(self.files.checkpoint_folder(), target)
        report = _new_file(place, lambda: bake(base, place, delta, strength, overwrite=False, precision=precision))
        self.files.refresh()
        return Report(f"Baked {delta.nnz:,} changes into {place.name}. {report.text()}".rstrip())

    def extract(self, base: str, tuned: str, select_by: str, amount: float, target: str) -> Report:
        """What makes a tuned checkpoint of its base, as a delta. select_by: one of EXTRACTED_BY"""
        known, place = self.files.checkpoints(), self._new_delta(target)
        if select_by not in EXTRACTED_BY:
            raise DeltaError(f"select_by takes {one_of(EXTRACTED_BY)}.")
        kept = {} if select_by == EVERYTHING else {select_by: amount}
        one, other = (chosen(name, known, "checkpoint") for name in (base, tuned))
        delta, report = extract_with_report(one, other, **kept)
        picture = density_picture(f"{tuned} minus {base}", density_by_block(delta))
        return self._saved(delta, place, report.text(), picture)

    def convert(self, name: str, base: str, density: float, to: str, rank: int, reader: str, target: str) -> Report:
        """Another program's file into a delta, or a delta into another's file. density: 0 keeps everything"""
        source = chosen(name, self.foreign(), "file")
        beside = chosen(base, self.files.checkpoints(), "checkpoint") if base else None
        if to not in WRITERS:
            raise DeltaError(f"There is no format '{to}'. Choose one of {', '.join(WRITERS)}.")
        place = self._new(self._folder(), target, WRITERS[to].ending)
        conversion = read_delta(source, beside, density or None, remedies=REMEDIES)
        written = _new_file(
            place, lambda: write_delta(conversion.delta, place, to, beside, rank, overwrite=False, reader=reader)
        )
        self.files.refresh()
        return Report(f"{conversion.text()}\n{written}")

    def _delta_path(self, name: str) -> Path:
        return chosen(name, self.files.deltas(), "delta")

    def _load(self, path: Path) -> SparseDelta:
        return SparseDelta.load(path, lambda names: advice(names, REMEDIES))

    def _saved(self, delta: SparseDelta, place: Path, text: str, drawn: Sheet) -> Report:
        _new_file(place, lambda: delta.save(place, overwrite=False))
        self.files.refresh()
        return Report(f"Saved as {place.name}.\n{text}", drawn.picture)

    def _folder(self) -> Path:
        folder = self.files.networks()[0]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _new_delta(self, name: str) -> Path:
        return self._new(self._folder(), name)

    def _new(self, folder: Path, name: str, ending: str = SUFFIX) -> Path:
        """Where a new file goes. Raises DeltaError for a name that is none, or is taken."""
        place = folder / file_name(name, ending, "the new file")
        if place.exists():
            raise _taken(place)
        return place


def _new_file(place: Path, write: Callable):
    try:
        return write()
    except NameTakenError as error:  # since it was looked for
        raise _taken(place) from error


def _taken(place: Path) -> DeltaError:
    return DeltaError(f"There is a {place.name} already, and it is not replaced: choose another name.")


def formats() -> Iterable[str]:
    """What Convert writes, its own format first."""
    return [OWN, *(name for name in WRITERS if name != OWN)]
