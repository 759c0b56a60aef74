"""Deltas in diffusers models: loading one, and renaming one that was trained there.

    handle = load_delta(pipeline, "style.safetensors", strength=0.8)
    ...
    handle.remove()                                        # every bit is back

    optimizer = SaRA(pipeline.unet, threshold=2e-3)        # the usual training loop of diffusers
    ...
    comfyui_delta(pipeline.unet, optimizer.delta()).save("style.safetensors")

diffusers itself is the caller's: nothing here imports it.
"""

import os
import warnings
from typing import Any

import torch

from .delta import SparseDelta, SparseEntry
from .delta import metadata as keys
from .delta.delta import AppliedDelta
from .delta.own_weights import OwnWeights
from .delta.text_part import split
from .delta.translate import to_comfy, to_diffusers
from .errors import UnsupportedModelError
from .files.source import Source
from .models import identity as base_identity
from .models.base import Base
from .names.diffusers import parts_in, parts_of_all, put_around
from .names.families import FAMILIES, family_of
from .names.resolve import PREFIX, resolve
from .names.text_encoders import TEXT_PREFIX, encoder_of, encoders_of, titles_of
from .wording import one_of

# What pipelines call their parts.
_DENOISER = "denoiser"
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def load_delta(
    pipeline_or_model: Any, path_or_delta: str | os.PathLike | SparseDelta, strength: float = 1.0
) -> AppliedDelta:
    """Change the weights of a diffusers pipeline's UNet or transformer, or of such a model, in place:
    round(float32(weight) + strength · Δ). Deltas add up with each other and with LoRAs.

    A pipeline's text encoders are changed too; a delta's part for those that are not there is left out, with a warning.

    path_or_delta: with ComfyUI's weight names, as every delta file has them, or with the model's own

    Returns a handle whose remove() restores every bit; remove the deltas of a model last in, first out.
    Raises DeltaError for a file that is no sound delta, or one of another model, and a strength that is not finite;
    UnsupportedModelError for a pipeline without such a model, and by name for weights that cannot be written exactly.

    With a UNet of a single layer in place of what `DiffusionPipeline.from_pretrained` loads:

    >>> import torch
    >>> from types import SimpleNamespace
    >>> from sara_core import SparseDelta, SparseEntry
    >>> from sara_core.diffusers_bridge import load_delta
    >>> unet = layer = torch.nn.Linear(2, 2, bias=False)
    >>> for name in reversed("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q".split(".")):
    ...     unet = torch.nn.ModuleDict({name: unet})
    >>> pipeline, before = SimpleNamespace(unet=unet), layer.weight.detach().clone()

    >>> entry = SparseEntry(torch.tensor([1, 2], dtype=torch.int32), torch.tensor([8.0, -8.0]), shape=(2, 2))
    >>> comfyui_name = "diffusion_model.input_blocks.2.1.transformer_blocks.0.attn1.to_q.weight"
    >>> SparseDelta({comfyui_name: entry}).save("style.safetensors")
    >>> handle = load_delta(pipeline, "style.safetensors", strength=0.5)
    >>> (layer.weight.detach() - before).round()
    tensor([[ 0.,  4.],
            [-4.,  0.]])
    >>> handle.remove()
    >>> torch.equal(layer.weight, before)
    True
    """
    delta = path_or_delta if isinstance(path_or_delta, SparseDelta) else SparseDelta.load(path_or_delta)
    of_model, of_text = split(delta)
    model, encoders, entries = None, {}, {}
    if of_model.entries or not of_text.entries:
        model = denoiser(pipeline_or_model)
        of_model = _with_own_names(of_model, OwnWeights(model).tensors)
    if of_text.entries:
        encoders, entries = _text_encoders(pipeline_or_model, of_text)
    if not encoders:
        return of_model.apply_(denoiser(pipeline_or_model) if model is None else model, strength)
    # One handle for all: the models beside each other under one roof, each weight by its model's name and its own.
    roof = torch.nn.ModuleDict(encoders if model is None else {**encoders, _DENOISER: model})
    if model is not None:
        found = resolve(of_model.entries, OwnWeights(model).tensors, "this diffusers model")
        entries |= {f"{_DENOISER}.{own}": of_model.entries[name] for name, own in found.items()}
    return SparseDelta(entries, delta.metadata).apply_(roof, strength)


def own_entries(pipeline_or_model: Any, delta: SparseDelta) -> tuple[dict[str, SparseEntry], dict[str, SparseEntry]]:
    """A delta's entries by a pipeline's own names: those of its UNet or transformer, by that model's; and those of its
    text encoders, behind the names that it has for them ("text_encoder.…"). What is not there is left out, with a
    warning.

    Raises DeltaError for a delta of another model, UnsupportedModelError for a pipeline without such a model.
    """
    of_model, of_text = split(delta)
    entries: dict[str, SparseEntry] = {}
    if of_model.entries:
        weights = OwnWeights(denoiser(pipeline_or_model)).tensors
        of_model = _with_own_names(of_model, weights)
        found = resolve(of_model.entries, weights, "this diffusers model")
        entries = {own: of_model.entries[name] for name, own in found.items()}
    return entries, _text_encoders(pipeline_or_model, of_text)[1] if of_text.entries else {}


def comfyui_delta(pipeline_or_model: Any, delta: SparseDelta) -> SparseDelta:
    """A delta that was trained on a diffusers model, with ComfyUI's names: to be saved as a file for everyone.

    delta: with the model's own names, as SaRA(model, …).delta() gives them

    Raises UnsupportedModelError for a model whose names in ComfyUI are not known; its delta can be saved as it is, and
    loads into diffusers alone. Raises DeltaError if the delta is not of this model.
    """
    model = denoiser(pipeline_or_model)
    shapes = _shapes(OwnWeights(model).tensors)
    known = family_of(shapes, whole=True)
    translated = parts_in(known, shapes)
    if any(name not in translated for name in delta.entries) and (word := put_around(shapes)) is not None:
        raise UnsupportedModelError(
            f"Something was put around this {type(model).__name__} or around layers of it, and is in the weights' "
            f"names as '{word}'; ComfyUI has no such names. Take it off, give the model that is in it, or save the "
            "delta as it is, for use with diffusers alone."
        )
    if known is None:
        raise UnsupportedModelError(
            f"ComfyUI's names for the weights of a {type(model).__name__} are not known: save the delta as it is, for "
            f"use with diffusers alone. They are known for models of {one_of(FAMILIES)}."
        )
    parts = parts_of_all(known, shapes)
    entries = to_comfy(delta.entries, parts) if parts else delta.entries
    named = {PREFIX + name: entry for name, entry in entries.items()}
    return SparseDelta(named, {**delta.metadata, keys.FAMILY: known.name} if known.name else delta.metadata)


@torch.no_grad()
def identity_metadata(pipeline_or_model: Any, name: str = "") -> dict[str, str]:
    """What a delta that is trained on a diffusers model says of its base, by ComfyUI's names (models/identity.py); to
    be asked for before the training.

    name: what to call the model
    """
    model = Source(name, tensors=OwnWeights(denoiser(pipeline_or_model)).tensors)
    return base_identity.identity_of(Base(model).weights(), name)


def denoiser(pipeline_or_model: Any) -> torch.nn.Module:
    """The UNet or transformer of a pipeline; a model itself, without what torch.compile or DataParallel is around it.

    Raises UnsupportedModelError for a pipeline that has neither.
    """
    model = pipeline_or_model
    if not isinstance(model, torch.nn.Module):
        parts = (getattr(model, part, None) for part in ("unet", "transformer"))
        model = next((part for part in parts if part is not None), None)
    if not isinstance(model, torch.nn.Module):
        raise UnsupportedModelError(
            f"{type(pipeline_or_model).__name__} has no UNet and no transformer in memory: give a diffusers pipeline "
            "that has one, or the model itself."
        )
    while (inner := _within(model)) is not None:
        model = inner
    return model


def _text_encoders(pipeline: Any, delta: SparseDelta) -> tuple[dict[str, torch.nn.Module], dict[str, SparseEntry]]:
    """A pipeline's text encoders by the names that it has for them, and a delta's entries by these and their own names.

    An encoder is the delta's if it has all of the changed weights, in their shapes.

    delta: entries of text encoders alone
    """
    parts = {part: getattr(pipeline, part, None) for part in _TEXT_ENCODERS}
    models = {part: model for part, model in parts.items() if isinstance(model, torch.nn.Module)}
    shapes = {part: _shapes(OwnWeights(model).tensors) for part, model in models.items()}
    used: dict[str, torch.nn.Module] = {}
    entries: dict[str, SparseEntry] = {}
    absent: list[str] = []
    for encoder in encoders_of(delta.entries):
        prefix = f"{TEXT_PREFIX}{encoder}.transformer."
        own = {name: entry for name, entry in delta.entries.items() if encoder_of(name) == encoder}
        named = {name.removeprefix(prefix): entry for name, entry in own.items()}
        # CLIPTextModel of transformers 5 has no `text_model` in it; with a projection it still has.
        bare = {name.removeprefix("text_model."): entry for name, entry in named.items()}
        fitting = ((part, wanted) for part in models if part not in used for wanted in (named, bare)
                   if all(shapes[part].get(name) == entry.shape for name, entry in wanted.items()))  # fmt: skip
        if (found := next(fitting, None)) is None:
            absent += own
        else:
            part, wanted = found
            used[part] = models[part]
            entries |= {f"{part}.{name}": entry for name, entry in wanted.items()}
    if absent:
        warnings.warn(f"Left out: the change of {titles_of(absent)}, which is not in this pipeline.", stacklevel=3)
    return used, entries


def _within(model: torch.nn.Module) -> torch.nn.Module | None:
    parallel = torch.nn.parallel.DataParallel, torch.nn.parallel.DistributedDataParallel
    return model.module if isinstance(model, parallel) else getattr(model, "_orig_mod", None)


def _shapes(weights: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def _with_own_names(delta: SparseDelta, weights: dict[str, torch.Tensor]) -> SparseDelta:
    shapes = _shapes(weights)
    parts = parts_of_all(family_of(shapes), shapes)
    if not parts or all(name in weights for name in delta.entries):
        return delta
    known = resolve(delta.entries, {part.name for part in parts.values()}, "this diffusers model")
    entries = to_diffusers({known[name]: entry for name, entry in delta.entries.items()}, parts)
    return SparseDelta(entries, delta.metadata)
