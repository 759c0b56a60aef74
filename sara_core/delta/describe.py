"""What a delta is, from its entries and metadata."""

import itertools
import json
import math
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from typing import TypeVar

from ..foreign_text import NAME, SENTENCES, plain
from ..names.blocks import block_of, natural_order
from ..tensors.elements import sum_of_squares
from . import metadata as keys
from .delta import SparseDelta
from .file_v1 import ESCAPE, STORED_BYTES, STORED_DISTANCE
from .text_part import Changes, changes_of_encoders

# Entropy coding of the positions comes this close to its limit (docs/format.md: Huffman codes of gap bytes).
_CODING_OVERHEAD = 1.02
_BYTES_PER_ENTRY = 500
# What people get to read of a file that says more, or has more blocks, than anyone would.
_MOST_LINES = 500
# Bytes as text, which say nothing to people.
_FOR_PROGRAMS = ("modelspec.thumbnail", keys.BASE_IDENTITY)

T = TypeVar("T")


@dataclass
class BlockDensity:
    """Of one block's weights that a delta names: changed elements, all elements, and the sum of Δ²."""

    count: int = 0
    of: int = 0
    squares: float = 0.0

    @property
    def density(self) -> float:
        """Changed elements as a share of all, 0 … 1."""
        return self.count / max(1, self.of)

    @property
    def strength(self) -> float:
        """Root mean square of the changes."""
        return math.sqrt(self.squares / max(1, self.count))


def density_by_block(delta: SparseDelta) -> dict[str, BlockDensity]:
    """Block → what the delta changes there, blocks in natural order."""
    blocks: dict[str, BlockDensity] = {}
    for name, entry in delta.entries.items():
        block = blocks.setdefault(block_of(name), BlockDensity())
        block.count += len(entry.indices)
        block.of += entry.numel
        block.squares += sum_of_squares(entry.values)
    return {name: blocks[name] for name in sorted(blocks, key=natural_order)}


def file_size(elements: int, density: float, weights: int = 0, value_bytes: int = 4) -> int:
    """About how large a delta's file is, in bytes: values, and positions as gap bytes or at their entropy.

    density: elements as a share of all; weights: how many weights they are in; value_bytes: 4 for fp32, 2 for bf16
    """
    if not 0 < density < 1:
        return elements * value_bytes + weights * _BYTES_PER_ENTRY
    position_bytes = 1 / (1 - (1 - density) ** ESCAPE)
    if position_bytes > STORED_BYTES or density * STORED_DISTANCE > 1:
        entropy = -(density * math.log2(density) + (1 - density) * math.log2(1 - density)) / density
        position_bytes = _CODING_OVERHEAD * entropy / 8
    return round(elements * (value_bytes + position_bytes)) + weights * _BYTES_PER_ENTRY


@dataclass
class DeltaFacts:
    """What there is to say about a delta.

    settings: readable name → value, from metadata, as far as the delta says; blocks: see density_by_block
    encoders: what people call each text encoder that is changed → how much of it
    All are anybody's words, which text() makes plain and as_dict() leaves as they are.
    """

    elements: int
    weights: int
    density: float
    value_dtype: str
    settings: dict[str, str]
    blocks: dict[str, BlockDensity] = field(default_factory=dict)
    encoders: dict[str, Changes] = field(default_factory=dict)

    def text(self) -> str:
        """For people."""
        settings, blocks = _shown(self.settings), _shown(self.blocks)
        width = max((len(name) for name, _ in settings), default=0)
        lines = [
            f"{self.elements:,} changes in {self.weights} weights, {self.density:.3%} of their elements, "
            f"values in {self.value_dtype}",
            *self._by_model(),
            *(f"{name:{width}}  {plain(value, SENTENCES)}" for name, value in settings),
            *_more(self.settings, settings),
            "",
        ]
        width = max((len(name) for name, _ in blocks), default=0)
        lines += [
            f"{name:{width}}  {block.count:>11,}  {block.density:8.3%}  ±{block.strength:.2e}" for name, block in blocks
        ]
        return "\n".join([*lines, *_more(self.blocks, blocks)])

    def _by_model(self) -> list[str]:
        """A line for the diffusion model and for each text encoder; none where there is but the one."""
        if not self.encoders:
            return []
        elements, weights = (sum(numbers) for numbers in zip(*self.encoders.values()))
        models = {"diffusion model": Changes(self.elements - elements, self.weights - weights), **self.encoders}
        shown = _shown(models)
        width = max(len(name) for name, _ in shown)
        return [
            *(f"{name:{width}}  {count.elements:>11,} changes in {count.weights} weights" for name, count in shown),
            *_more(models, shown),
        ]

    def as_dict(self) -> dict:
        """For programs: plain numbers, texts and dicts."""
        return {
            "elements": self.elements, "weights": self.weights, "density": self.density,
            "values": self.value_dtype, "settings": self.settings,
            "blocks": {
                name: {"count": block.count, "density": block.density, "strength": block.strength}
                for name, block in self.blocks.items()
            },
            "text_encoders": {name: changes._asdict() for name, changes in self.encoders.items()},
        }  # fmt: skip


# Metadata key → how people call it.
_LABELS = {
    "modelspec.title": "title",
    "modelspec.author": "author",
    "modelspec.description": "description",
    "modelspec.trigger_phrase": "trigger",
    "modelspec.license": "license",
    keys.FAMILY: "family",
    keys.BASE_NAME: "base",
    keys.BASE: "base fingerprint",
    keys.SELECTION: "selection",
    keys.TRAINING: "training",
    keys.MERGE: "merged",
    keys.EXTRACTION: "extracted",
    keys.CONVERTED: "converted",
}


def describe(delta: SparseDelta) -> DeltaFacts:
    """Everything a delta says about itself."""
    dtypes = {str(entry.values.dtype).removeprefix("torch.") for entry in delta.entries.values()}
    return DeltaFacts(
        delta.nnz, len(delta.entries), delta.density, ", ".join(sorted(dtypes)), readable_settings(delta.metadata),
        density_by_block(delta), changes_of_encoders(delta),
    )  # fmt: skip


def readable_settings(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a delta's metadata say, under names that people know, JSON objects as lists; without what is for
    programs."""
    named = {label: _readable(metadata[key]) for key, label in _LABELS.items() if key in metadata}
    known = {*_LABELS, *_FOR_PROGRAMS}
    others = {key: _readable(text) for key, text in metadata.items() if key not in known}
    return {**named, **others}


def _shown(values: Mapping[str, T]) -> list[tuple[str, T]]:
    """The first ones, under their names as people get to see them."""
    return [(plain(name, NAME), value) for name, value in itertools.islice(values.items(), _MOST_LINES)]


def _more(values: Sized, shown: Sized) -> list[str]:
    return [f"and {len(values) - len(shown):,} more"] if len(values) > len(shown) else []


def _readable(text: str) -> str:
    """A JSON object as `name value, name value`; any other text as it is."""
    try:
        content = json.loads(text)
        if isinstance(content, Mapping):
            said = {name: value for name, value in content.items() if value not in ([], "", None)}
            return ", ".join(f"{name} {_plain(value)}" for name, value in said.items())
    except (ValueError, RecursionError):
        pass
    return text


def _plain(value) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "; ".join(map(_plain, value))
    if isinstance(value, Mapping):
        return " ".join(map(_plain, value.values()))
    return str(value)
