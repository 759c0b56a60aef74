"""Making deltas of foreign files, which are recognised by what is in them."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..delta import SparseDelta, SparseEntry
from ..delta import metadata as keys
from ..delta.translate import to_comfy
from ..errors import DeltaError
from ..extraction.extract import extract_with_report
from ..extraction.largest_changes import Kept, keep_largest
from ..files import kinds, torch_file
from ..files.source import Source, model_files, opened
from ..models.base import Base, opened_base
from ..names.diffusers import diffusers_parts
from ..names.resolve import PREFIX
from .adapters.file import opened_adapter
from .adapters.peft_settings import alphas_of
from .sparse import lt_sft, sara_authors, shira, super_tuning

# What PEFT, diffusers and composable-sft call the one file in the folder that they make.
_ADAPTER_FILES = (shira.WEIGHTS, "adapter_model.bin", "pytorch_lora_weights.safetensors", lt_sft.FILE)

_ROUNDING = 1e-9

Progress = Callable[[int, int], None]


@dataclass
class Conversion:
    """A delta made of a foreign file.

    source: what the file was; lost: share of its squared changes that the density cut off, 0 … 1
    left_out: names of parts of the file that a delta does not hold; notes: further lines for people
    """

    delta: SparseDelta
    source: str
    lost: float = 0.0
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The report for people."""
        lines = [f"{self.source}: {self.delta.nnz:,} changes in {len(self.delta.entries)} weights."]
        if self.lost > _ROUNDING:
            lines.append(f"Lost with the smaller changes: {self.lost:.2%} of the squared change.")
        if self.left_out:
            lines.append(f"Left out: {len(self.left_out)} modules of the text encoder.")
        return "\n".join(lines + self.notes)


def read(
    path: str | os.PathLike,
    base: str | os.PathLike | None = None,
    density: float | None = None,
    on_progress: Progress | None = None,
) -> Conversion:
    """The delta in a file or folder of any known kind: see docs/conversion.md.

    base: the model that the file belongs to, a diffusers folder or a `.safetensors` file; most kinds need it
    density: share of the base's elements to keep, for files that change every element
    on_progress: called with steps done and steps in all; may raise to stop
    Raises DeltaError for files of an unknown kind, damaged ones, and bases that do not fit.
    """
    path = Path(path)
    path = next((path / name for name in _ADAPTER_FILES if os.path.isfile(path / name)), path)
    reading = _Reading(path, base, density, on_progress)
    if os.path.isdir(path):
        return reading.of_models()
    if not os.path.isfile(path):
        raise DeltaError(f"The file '{path}' does not exist. Choose another one, or put it there again.")
    try:
        return reading.of_torch_file() if torch_file.is_torch_file(path) else reading.of_safetensors()
    except OSError as error:
        raise DeltaError(f"'{path.name}' cannot be read ({error.strerror or error}). Check its permissions.") from error


class _Reading:
    """One file on its way to a delta."""

    def __init__(self, path: Path, base: str | os.PathLike | None, density: float | None, on_progress: Progress | None):
        self.path, self.base, self.density, self.on_progress = path, base, density, on_progress

    def of_safetensors(self) -> Conversion:
        with opened([self.path], self.path.name) as source:
            kind = kinds.kind(source.names)
            if kind == kinds.SARA:
                self._refuse_density()
                return Conversion(SparseDelta.load(self.path), "A SaRA delta")
            return self.of_models() if kind == kinds.MODEL else self._of_tensors(source, kind)

    def of_torch_file(self) -> Conversion:
        content = torch_file.load(self.path)
        if sara_authors.is_original(content):
            return self._of_original(content)
        if lt_sft.is_lt_sft(content):
            return self._of_lt_sft(content)
        named = isinstance(content, dict) and all(
            isinstance(name, str) and torch_file.is_plain(tensor) for name, tensor in content.items()
        )
        if not named:
            raise self._unknown()
        source = Source(self.path.name, tensors={name: tensor.detach() for name, tensor in content.items()})
        return self._of_tensors(source, kinds.kind(content))

    def of_models(self) -> Conversion:
        """A tuned model as a whole, beside its base."""
        if self.path.is_dir() and not model_files(self.path):
            raise self._unknown()
        with self._opened_base("A whole model") as base, opened_base(self.path) as tuned:
            # As files, the comparison also tells what differs in their other parts.
            as_files = not (base.is_diffusers or tuned.is_diffusers)
            models = (self.base, self.path) if as_files else (base.weights(), tuned.weights())
            delta, report = extract_with_report(*models, density=self.density, on_progress=self.on_progress)
            lost = max(0.0, 1 - report.squared_share)
            metadata = delta.metadata | self._metadata(base, "a whole model", lost)
        return Conversion(SparseDelta(delta.entries, metadata), "A whole model", lost, notes=[report.text()])

    def _of_tensors(self, source: Source, kind: str | None) -> Conversion:
        if kind == kinds.ADAPTER:
            return self._of_adapter(source)
        if kind not in _PEFT:
            raise self._unknown()
        what, of_peft = _PEFT[kind]
        if kind == kinds.SUPER_TUNING and super_tuning.is_hybrid(source.names):
            return self._of_hybrid(source)
        self._refuse_density()
        with self._opened_base(what) as base:
            return self._made(of_peft(source, base), base, what)

    def _of_adapter(self, source: Source) -> Conversion:
        with self._opened_base("A LoRA or weight difference") as base:
            adapter = opened_adapter(source, base, alphas_of(self.path, source.metadata))
            kept = self._kept(adapter.changes, len(adapter.modules), base)
            made = self._made(kept.entries, base, "A LoRA or weight difference", kept.lost)
            made.left_out = adapter.left_out
            return made

    def _of_hybrid(self, source: Source) -> Conversion:
        what = "Super-Tuning with a LoRA"
        with self._opened_base(what) as base:
            hybrid = super_tuning.Hybrid(source, base, alphas_of(self.path, source.metadata))
            kept = self._kept(hybrid.changes, len(hybrid), base)
            return self._made(kept.entries, base, what, kept.lost)

    def _of_original(self, content: Mapping) -> Conversion:
        self._refuse_density()
        with self._opened_base("A file of the SaRA authors' code") as base:
            return self._made(sara_authors.read(content, base), base, "A file of the SaRA authors' code")

    def _of_lt_sft(self, content: Mapping) -> Conversion:
        entries, lost = lt_sft.read(content), 0.0
        what = "LT-SFT"
        if self.base is None and not content.get("abs"):
            self._refuse_density()
            parts = diffusers_parts({name: entry.shape for name, entry in entries.items()})
            named = {PREFIX + name: entry for name, entry in to_comfy(entries, parts).items()} if parts else entries
            return self._made(named, None, what)
        with self._opened_base("LT-SFT with whole weights in it") as base:
            if content.get("abs"):
                kept = self._kept(lambda: lt_sft.whole_weights(content, base), len(content["abs"]), base)
                entries, lost = entries | kept.entries, kept.lost
            else:
                self._refuse_density()
            return self._made(base.from_diffusers(entries), base, what, lost)

    def _made(self, entries: Mapping[str, SparseEntry], base: Base | None, what: str, lost: float = 0.0) -> Conversion:
        entries = {name: entry for name, entry in entries.items() if len(entry.indices)}
        if not entries:
            raise DeltaError(f"'{self.path.name}' changes nothing: there is no delta to make of it.")
        return Conversion(SparseDelta(entries, self._metadata(base, what, lost)), what, lost)

    def _metadata(self, base: Base | None, what: str, lost: float) -> dict[str, str]:
        record = {"from": what, "density": self.density, "lost": lost}
        family = {keys.FAMILY: base.family} if base is not None and base.family else {}
        return {**family, keys.CONVERTED: json.dumps(record)}

    @contextlib.contextmanager
    def _opened_base(self, what: str) -> Iterator[Base]:
        if self.base is None:
            raise DeltaError(
                f"{what} ('{self.path.name}') can only be converted beside the base model that it was made for: give "
                "it, a checkpoint or a diffusers folder, as base_name in SaRA Convert or as --base."
            )
        with opened_base(self.base) as base:
            yield base

    def _refuse_density(self) -> None:
        if self.density is not None:
            raise DeltaError(f"'{self.path.name}' is sparse already and loses nothing: leave the density out.")

    def _kept(self, changes: Callable[[], Iterator], number: int, base: Base) -> Kept:
        """keep_largest(), telling how far the `number` changes have been read in the three times that it may ask."""
        done, steps = 0, 3 * number

        def counted():
            nonlocal done
            for change in changes():
                yield change
                done += 1
                tell(done, steps)

        tell = self.on_progress or (lambda done, total: None)
        kept = keep_largest(counted, self.density, base.elements)
        if done < steps:  # a reading that was not needed counts as done
            tell(steps, steps)
        return kept

    def _unknown(self) -> DeltaError:
        return DeltaError(
            f"'{self.path.name}' is nothing that can be converted: neither a delta or adapter (SaRA, SHiRA, "
            "Super-Tuning, LT-SFT, LoRA, LyCORIS, .diff) nor a model in .safetensors files."
        )


_PEFT = {kinds.SHIRA: ("SHiRA", shira.read), kinds.SUPER_TUNING: ("Super-Tuning", super_tuning.read)}
