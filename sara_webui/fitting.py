"""A delta's entries by the names that a host's model has for its weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from sara_core.delta import SparseDelta, SparseEntry
from sara_core.delta import metadata as keys
from sara_core.delta.delta import check_fits, check_precision
from sara_core.delta.text_part import split
from sara_core.delta.variants import left_out
from sara_core.errors import DeltaError
from sara_core.models.text_encoders import stored_entries
from sara_core.names.family_names import current_name, layout_name
from sara_core.names.resolve import resolve
from sara_core.names.stored import CHECKPOINT_PREFIX

from .in_place import Place


@dataclass(frozen=True, eq=False)
class Model:
    """A host's model.

    own: an object that is another one for another model; label: what people call it; family: in people's words
    places: its parameters by their names: those that a checkpoint file has for the diffusion model's
    text_entries: a delta's entries of text encoders by the names that `places` has, and what is to be said of those
        that it has not; called as stored_entries, which is for the names of checkpoint files
    entries: all of a delta's entries by the names that `places` has, and what is to be said, for a model whose names
        are not a checkpoint's; may raise DeltaError
    """

    own: object
    label: str
    family: str
    places: Mapping[str, Place]
    text_entries: Callable[..., tuple[dict[str, SparseEntry], list[str]]] = stored_entries
    entries: Callable[[SparseDelta], tuple[dict[str, SparseEntry], list[str]]] | None = None


def is_of_unet(name: str) -> bool:
    """Whether a weight of this name in a checkpoint is the diffusion model's, not a text encoder's."""
    return name.startswith(CHECKPOINT_PREFIX)


def fitted(delta: SparseDelta, model: Model, on_left_out: Callable[[str], None]) -> dict[str, SparseEntry]:
    """The delta's entries by the model's names.

    on_left_out: is told, for people, what this model has no place for, and is left out
    Raises DeltaError if the delta does not fit the model; UnsupportedModelError for weights in which single elements
    cannot be changed.
    """
    made_for = delta.metadata.get(keys.FAMILY)
    try:
        entries, said = _found(delta, model)
    except DeltaError as error:
        if made_for is None or layout_name(made_for) == layout_name(model.family):
            raise
        made_for = current_name(made_for)
        raise DeltaError(
            f"This delta is for {made_for}, the model is {model.family}. Choose a checkpoint of {made_for}, or a delta "
            f"for {model.family}."
        ) from error
    for sentence in said:
        on_left_out(sentence)
    return entries


def _found(delta: SparseDelta, model: Model) -> tuple[dict[str, SparseEntry], list[str]]:
    weights: dict[str, torch.Tensor] = {name: place.weight for name, place in model.places.items()}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    entries, said = model.entries(delta) if model.entries is not None else _by_stored_names(delta, model, shapes)
    for name, entry in entries.items():
        check_precision(name, weights[name])
        check_fits(name, entry, shapes[name])
    return entries, said


def _by_stored_names(
    delta: SparseDelta, model: Model, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, SparseEntry], list[str]]:
    of_model, of_text = split(delta)
    names = resolve(of_model.entries, list(filter(is_of_unet, shapes)), f"this {model.family} model")
    entries = {own: of_model.entries[name] for name, own in names.items()}
    skipped = left_out(entries, shapes)
    entries = {name: entry for name, entry in entries.items() if name not in skipped}
    text_entries, said = model.text_entries(of_text.entries, shapes, model.label)
    return entries | text_entries, [*skipped.values(), *said]
