"""What of a delta is of the diffusion model, and what of text encoders: a host has them in different places."""

from ..names.text_encoders import is_of_text_encoder
from .delta import SparseDelta


def split(delta: SparseDelta) -> tuple[SparseDelta, SparseDelta]:
    """The delta's part for the diffusion model and its part for text encoders, each with all of its metadata; their
    tensors are the delta's own."""
    parts = SparseDelta({}, delta.metadata), SparseDelta({}, delta.metadata)
    for name, entry in delta.entries.items():  # checked when the delta was made
        parts[is_of_text_encoder(name)].entries[name] = entry
    return parts
