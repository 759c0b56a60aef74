"""What of a delta is of the diffusion model, and what of text encoders: a host has them in different places."""

from typing import NamedTuple

from ..names.text_encoders import encoder_of, encoders_of, is_of_text_encoder, title_of
from ..wording import counted
from .delta import SparseDelta


def split(delta: SparseDelta) -> tuple[SparseDelta, SparseDelta]:
    """The delta's part for the diffusion model and its part for text encoders, each with all of its metadata; their
    tensors are the delta's own."""
    parts = SparseDelta({}, delta.metadata), SparseDelta({}, delta.metadata)
    for name, entry in delta.entries.items():  # checked when the delta was made
        parts[is_of_text_encoder(name)].entries[name] = entry
    return parts


class Changes(NamedTuple):
    """How much of a part is changed: elements, and the weights that they are in."""

    elements: int
    weights: int


def changes_of_encoders(delta: SparseDelta) -> dict[str, Changes]:
    """What people call each text encoder that the delta changes → how much of it."""
    found: dict[str, list[int]] = {encoder: [] for encoder in encoders_of(delta.entries)}
    for name, entry in split(delta)[1].entries.items():
        found[encoder_of(name)].append(len(entry.indices))
    return {title_of(encoder): Changes(sum(counts), len(counts)) for encoder, counts in found.items()}


def text_lines(delta: SparseDelta) -> list[str]:
    """A line for people on each text encoder that the delta changes."""
    return [
        f"{title}: {changes.elements:,} of the changes, in {counted(changes.weights, 'weight')}."
        for title, changes in changes_of_encoders(delta).items()
    ]
