"""Putting a SparseDelta on a MODEL as weight patches, and teaching the stock LoRA loaders to read delta files."""

import logging
import os
from collections.abc import Callable, Mapping

import torch
from comfy import weight_adapter
from comfy.utils import get_attr

from ...sara_core.delta import SparseDelta, SparseEntry, file_v1
from ...sara_core.delta.delta import check_fits, check_range
from ...sara_core.delta.variants import left_out, takes_other_inputs
from ...sara_core.errors import DeltaError, UnsupportedModelError
from ...sara_core.names.entrance import is_first_layer
from ...sara_core.names.family_names import layout_name
from ...sara_core.names.resolve import WEIGHT, check_distinct, resolve
from ...sara_core.tensors.elements import add_sparse_, gather, may_overflow, scatter_
from ...sara_core.wording import listed
from . import quantised_layers
from .family import delta_family, model_family
from .precision import check_known, dequantised, is_gguf, is_host_quantised, logical_shapes, precision_of
from .rounded_anew import tell_once
from .unpatched import never_patched

STOCK_LOADERS_SWITCH = "SARA_STOCK_LOADERS"
# How Nunchaku and others call the packed weight of a layer.
_PACKED = ".qweight"
# What people call what a delta is put on.
MODEL, CLIP = "model", "CLIP"
_CONVOLUTIONS = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}


class SaRAAdapter(weight_adapter.WeightAdapterBase):
    """One weight's SparseEntry as a weight patch of the host.

    The host rebuilds adapters as `type(a)(a.loaded_keys, moved_weights)`, so nothing lives outside these two, and it
    casts top-level tensors to the weight's dtype, so the indices are nested: ((indices, values), shape).
    """

    name = "sara"

    def __init__(self, loaded_keys: set[str], weights: tuple):
        self.loaded_keys = loaded_keys
        self.weights = weights

    @classmethod
    def of(cls, entry: SparseEntry, loaded_keys: set[str]) -> "SaRAAdapter":
        """The adapter of a checked entry."""
        return cls(loaded_keys, ((entry.indices, entry.values), entry.shape))

    @classmethod
    def load(cls, x, lora, alpha, dora_scale, loaded_keys=None) -> "SaRAAdapter | None":
        """The adapter of module or parameter `x` in an opened file, or None if the file has no SaRA entry for it.

        Called for every module and every LoRA file: by the stock loaders with five arguments, by Train LoRA with
        four.
        Raises DeltaError if the entry is not sound.
        """
        found = [name for name in (file_v1.part_name(x, part) for part in file_v1.PARTS) if name in lora]
        if not found:
            return None
        if file_v1.part_name(x + WEIGHT, file_v1.PARTS[0]) in lora:
            check_distinct([x, x + WEIGHT])
        if len(found) < len(file_v1.PARTS):
            raise DeltaError(f"The delta's entry '{x}' is incomplete. Get the file again from where it came from.")
        _, entry = file_v1.decode(x, lora.__getitem__)
        return cls.of(entry, set(found))

    def calculate_weight(
        self,
        weight,
        key,
        strength,
        strength_model,
        offset,
        function,
        intermediate_dtype=torch.float32,
        original_weight=None,
    ):
        """Add strength · Δ to `weight` in place, in float32 and rounded once to its dtype; returns it.

        The stock loaders know a model's weights only here, so here the change of the first layer is left out, with a
        line in the log, on a variant whose first layer takes other channels.
        A weight that the host hands over quantised is dequantised, as the host's own adapters do by adding to it.
        Raises DeltaError, before anything is moved to the weight's device, if the delta has another shape otherwise.
        """
        (indices, values), shape = self.weights
        if is_first_layer(key) and takes_other_inputs(shape, tuple(weight.shape)):
            logging.warning(
                f"SaRA: the delta's change of '{key}' is left out: this layer takes {weight.shape[1]} channels here, "
                f"and {shape[1]} in the model the delta was made for."
            )
            return weight
        check_fits(key, SparseEntry(indices, values, shape), tuple(weight.shape))
        if strength == 0:
            return weight
        tell_once(key, self.loaded_keys)
        if is_host_quantised(weight):
            weight = weight.dequantize()
        return add_sparse_(weight, indices.to(weight.device), values.to(weight.device), strength)

    def to_train(self):
        """Train LoRA asks this of the file it is to continue from."""
        raise UnsupportedModelError(
            "Train LoRA cannot continue from a SaRA delta. Choose [None] as its existing_lora, or use SaRA Train."
        )

    def h(self, x, base_out):
        """Bypass mode: what the delta adds to a Linear's or convolution's output for input `x`."""
        (indices, values), shape = self.weights
        if indices.device != x.device:
            indices, values = indices.to(x.device), values.to(x.device)
            self.weights = ((indices, values), shape)
        if self.is_conv:
            operation, options = _CONVOLUTIONS[self.conv_dim], self.kw_dict
        elif len(shape) == 2 and x.is_floating_point():
            operation, options = torch.nn.functional.linear, {}
        else:
            raise UnsupportedModelError(
                "This delta changes a layer that is neither Linear nor convolution, which bypass mode cannot do. "
                "Use the Load LoRA or SaRA Loader node."
            )
        change = torch.zeros(shape, dtype=x.dtype, device=x.device)
        scatter_(change, indices, (values.float() * self.multiplier).to(x.dtype))
        return operation(x, change, **options)


def register_adapter() -> None:
    """Let the stock Load LoRA, and whatever is built on it, load delta files; SARA_STOCK_LOADERS=0 leaves it out."""
    if os.environ.get(STOCK_LOADERS_SWITCH) == "0":
        return
    known = getattr(weight_adapter, "adapters", None)
    if not isinstance(known, list):
        logging.warning("SaRA: this ComfyUI keeps no list of weight adapters; use SaRA Loader instead of Load LoRA.")
    elif not any(adapter.__name__ == SaRAAdapter.__name__ for adapter in known):
        known.append(SaRAAdapter)


def patch_model(model, delta: SparseDelta, strength: float, on_left_out: Callable[[str], None] = logging.warning):
    """A clone of MODEL with strength · Δ: as weight patches, and on quantised weights without rounding any of them
    anew (quantised_layers.py). MODEL itself at strength 0.

    on_left_out: is told, for people, what does not fit this variant of the model (delta/variants.py), or is nothing
        that ComfyUI patches, and is left out; and which nodes do not see what was put on quantised weights

    Raises DeltaError if the delta does not fit the model, or makes an element too large for its dtype;
    UnsupportedModelError if a weight is of a kind that nobody here knows.
    """
    if strength == 0:
        return model
    entries = _fitting(model, delta, on_left_out)
    patched = model.clone()
    add_changes(patched, entries, strength, on_left_out)
    return patched


def add_changes(
    patcher,
    entries: Mapping[str, SparseEntry],
    strength: float,
    on_left_out: Callable[[str], None],
    kind: str = MODEL,
) -> None:
    """Make a clone of a MODEL, or of a CLIP's patcher, compute with strength · Δ.

    entries: by the host's keys, of the shapes that the weights have when they are dequantised
    on_left_out: is told, for people, what ComfyUI never patches, and which nodes do not see what was put on quantised
        weights; kind: MODEL or CLIP

    Raises DeltaError if an element gets too large for its dtype, or the host takes one of the changes not.
    """
    _check_values(patcher, entries, strength)
    weights = {key: get_attr(patcher.model, key) for key in entries}
    kept = {key: entries[key] for key, weight in weights.items() if _stays_quantised(patcher, key, weight, kind)}
    patches = {key: SaRAAdapter.of(entry, set()) for key, entry in entries.items() if key not in kept}
    accepted = set(patcher.add_patches(patches, strength))
    if accepted != set(patches):
        raise DeltaError(f"ComfyUI did not accept the delta for {listed(set(patches) - accepted)}. Update SaRA.")
    if beside := never_patched(patcher, patches):
        on_left_out(
            f"ComfyUI changes no parameters that stand beside layers: what the delta changes of {listed(beside)} is "
            f"missing in this {kind}. SaRA Bake writes it into a checkpoint."
        )
    if kept:
        quantised_layers.put_on(patcher, kept, strength, kind == MODEL)
        on_left_out(quantised_layers.what_nodes_miss((precision_of(weights[key]) for key in kept), kind))


def _stays_quantised(patcher, key: str, weight: torch.Tensor, kind: str) -> bool:
    """Whether patches would round the whole weight anew; ComfyUI-GGUF's layers apply them to a dequantised copy."""
    if precision_of(weight) is None or is_gguf(weight):
        return False
    return quantised_layers.takes_changes(patcher, key, kind == MODEL)


def _fitting(model, delta: SparseDelta, on_left_out: Callable[[str], None]) -> dict[str, SparseEntry]:
    """The delta's entries by the host's keys, but for those that this variant of the model has no place for."""
    shapes = logical_shapes(model)
    made_for, family = delta_family(delta.metadata), model_family(model)
    if packed := [name for name in shapes if name.endswith(_PACKED)]:
        raise UnsupportedModelError(
            f"This model's weights are packed by another pack ('{packed[0]}'), in a form that no delta fits. Use the "
            "model in fp8, nvfp4, int8, GGUF, fp16, bf16 or fp32."
        )
    try:
        keys = resolve(delta.entries, shapes, f"this {family} model")
        entries = {key: delta.entries[name] for name, key in keys.items()}
        shapes = {key: tuple(shapes[key]) for key in entries}
        for key in entries:
            check_known(key, get_attr(model.model, key))
        skipped = left_out(entries, shapes)
        for key in entries.keys() - skipped.keys():
            check_fits(key, entries[key], shapes[key])
    except DeltaError as error:
        if made_for is None or layout_name(made_for) == layout_name(family):
            raise
        raise DeltaError(
            f"This delta is for {made_for}, the model is {family}. Load a {made_for} model, or choose a delta for "
            f"{family}."
        ) from error
    for sentence in skipped.values():
        on_left_out(sentence)
    return {key: entry for key, entry in entries.items() if key not in skipped}


def _check_values(patcher, entries: Mapping[str, SparseEntry], strength: float) -> None:
    computes_in = getattr(patcher.model, "get_dtype_inference", lambda: torch.float32)
    for key, (indices, values, _) in entries.items():
        weight = get_attr(patcher.model, key)
        ordinary = precision_of(weight) is None
        dtype = weight.dtype if ordinary else computes_in()
        if may_overflow(values, strength, dtype):
            layer, _, parameter = key.rpartition(".")
            base = weight if ordinary else dequantised(patcher.model.get_submodule(layer), parameter, dtype)
            check_range(key, gather(base, indices.to(base.device)), values, strength)
