"""Putting a delta's part for text encoders on a CLIP as weight patches."""

from collections.abc import Callable, Collection, Mapping

from comfy.utils import get_attr

from ...sara_core.delta import SparseDelta
from ...sara_core.delta.delta import check_fits
from ...sara_core.errors import DeltaError
from ...sara_core.names.text_encoders import TEXT_PREFIX, encoder_of, title_of, titles_of
from ...sara_core.wording import listed
from .patching import CLIP, add_changes
from .precision import check_known, logical_shapes


def patch_clip(clip, delta: SparseDelta, strength: float, on_left_out: Callable[[str], None]):
    """A clone of CLIP with strength · Δ as weight patches; CLIP itself at strength 0, or if nothing of it is changed.

    delta: entries of text encoders alone (text_part.split)
    on_left_out: is told, for people, which text encoders the CLIP does not have, and what ComfyUI never patches

    Raises DeltaError if a text encoder of this name is another one, or an element gets too large for its dtype;
    UnsupportedModelError if a weight is of a kind that nobody here knows.
    """
    if strength == 0:
        return clip
    shapes = logical_shapes(clip.patcher)
    keys = _keys(delta.entries, shapes)
    if absent := delta.entries.keys() - keys.keys():
        on_left_out(f"Left out: the change of {titles_of(absent)}, which this CLIP does not have.")
    if not keys:
        return clip
    entries = {key: delta.entries[name] for name, key in keys.items()}
    for key, entry in entries.items():
        check_known(key, get_attr(clip.patcher.model, key))
        check_fits(key, entry, tuple(shapes[key]))
    patched = clip.clone()
    add_changes(patched.patcher, entries, strength, on_left_out, CLIP)
    return patched


def without_clip(delta: SparseDelta) -> str:
    """What is left out if no CLIP is connected, for people. delta: entries of text encoders alone"""
    return (
        f"Left out: the change of {titles_of(delta.entries)} ({delta.nnz:,} elements), because no CLIP is connected to "
        "the node."
    )


def _keys(names: Collection[str], weights: Mapping) -> dict[str, str]:
    """The delta's name → the CLIP's key, for all weights of the text encoders that it has.

    Raises DeltaError if one of them lacks a weight: it is another one.
    """
    present = {key.partition(".")[0] for key in weights}
    keys = {name: name.removeprefix(TEXT_PREFIX) for name in names if encoder_of(name) in present}
    if missing := [name for name, key in keys.items() if key not in weights]:
        raise DeltaError(
            f"This CLIP's {title_of(encoder_of(missing[0]))} lacks {len(missing)} of the weights that the delta "
            f"changes: {listed(missing)}. Connect the CLIP of the model that the delta was made for."
        )
    return keys
