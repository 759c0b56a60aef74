"""The loaded pipeline as deltas see it: the parameters of its diffusion model and of its text encoders, by the names
that these have in diffusers."""

import warnings
from typing import Any

import torch

from sara_core.delta import SparseDelta, SparseEntry
from sara_core.diffusers_bridge import denoiser, own_entries
from sara_core.errors import UnsupportedModelError
from sara_core.names.families import family_of
from sara_core.names.stored import CHECKPOINT_PREFIX

from ...fitting import Model
from ...in_place import Place

_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def model_of(pipeline: Any, label: str) -> Model:
    """See Model. Raises UnsupportedModelError for a pipeline without a diffusion model, or one whose weights are not in
    memory."""
    model = denoiser(pipeline)
    places = _places(CHECKPOINT_PREFIX, model)
    if any(place.weight.is_meta for place in places.values()):
        raise UnsupportedModelError(
            "The model's weights are not in memory between steps: set Model offload mode to balanced, model or none."
        )
    shapes = {name.removeprefix(CHECKPOINT_PREFIX): tuple(place.weight.shape) for name, place in places.items()}
    known = family_of(shapes)
    for name in _TEXT_ENCODERS:
        if isinstance(encoder := getattr(pipeline, name, None), torch.nn.Module):
            places |= _places(f"{name}.", encoder)
    family = known.name if known is not None and known.name else type(pipeline).__name__
    return Model(pipeline, label, family, places, entries=lambda delta: _entries(pipeline, delta))


def _places(prefix: str, model: torch.nn.Module) -> dict[str, Place]:
    return {
        f"{prefix}{path}.{name}" if path else f"{prefix}{name}": Place(parameter, (module,))
        for path, module in model.named_modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    }


def _entries(pipeline: Any, delta: SparseDelta) -> tuple[dict[str, SparseEntry], list[str]]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        of_model, of_text = own_entries(pipeline, delta)
    entries = {f"{CHECKPOINT_PREFIX}{name}": entry for name, entry in of_model.items()}
    return entries | of_text, [str(one.message) for one in said]
