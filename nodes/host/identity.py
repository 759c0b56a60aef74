"""Telling a MODEL apart from the one that a delta was trained on."""

import logging
from pathlib import Path

from ...sara_core.delta import SparseDelta
from ...sara_core.models import identity as base_identity
from .base_weights import base_weights


def model_name(model) -> str:
    """Name of the file that the MODEL was loaded from, empty where the host does not say."""
    loaded_by = getattr(model, "cached_patcher_init", None)
    path = loaded_by[1][0] if loaded_by and loaded_by[1] else None
    return Path(path).name if isinstance(path, str) else ""


def identity_metadata(model) -> dict[str, str]:
    """What a delta that is trained on this MODEL says of its base; to be asked for before Δ is written into it."""
    return base_identity.identity_of(base_weights(model), model_name(model))


def verdict(model, delta: SparseDelta) -> base_identity.Verdict:
    """What this MODEL, without its patches, is to the delta."""
    return base_identity.compare(delta.metadata, base_weights(model))


def warning(model, delta: SparseDelta) -> str:
    """One line if the delta was trained on another model than this one, empty if not or not known."""
    text = verdict(model, delta).warning()
    if text:
        logging.warning(f"SaRA: {text}")
    return text
