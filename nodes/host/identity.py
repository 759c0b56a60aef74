"""Telling a MODEL apart from the one that a delta was trained on."""

import logging
import math
from pathlib import Path

import torch

from ...sara_core.delta import SparseDelta
from ...sara_core.models import identity as base_identity
from ...sara_core.models.samples import RUN, QuantisedWeight, Sample, floor, named_precision
from .base_weights import base_weight, kept_elements
from .precision import is_gguf, is_host_quantised, logical_shapes, precision_of
from .quantised_rows import dequantised_row, row_length, row_scale

_STORED_IN_BF16 = "GGUF BF16"
# Every scale of mxfp8 and of Q8_0 is of so many neighbours.
_BLOCK = 32


def model_name(model) -> str:
    """Name of the file that the MODEL was loaded from, empty where the host does not say."""
    loaded_by = getattr(model, "cached_patcher_init", None)
    path = loaded_by[1][0] if loaded_by and loaded_by[1] else None
    return Path(path).name if isinstance(path, str) else ""


def identity_metadata(model) -> dict[str, str]:
    """What a delta that is trained on this MODEL says of its base; to be asked for before Δ is written into it."""
    return base_identity.identity_of(weights_of(model), model_name(model))


def verdict(model, delta: SparseDelta) -> base_identity.Verdict:
    """What this MODEL, without its patches, is to the delta."""
    return base_identity.compare(delta.metadata, weights_of(model))


def remark(model, delta: SparseDelta) -> str:
    """One line if the delta was trained on another model than this one (which is logged as a warning), or in another
    precision; empty if not or not known."""
    found = verdict(model, delta)
    if text := found.warning():
        logging.warning(f"SaRA: {text}")
    elif text := found.note():
        logging.info(f"SaRA: {text}")
    return text


def weights_of(model) -> dict[str, torch.Tensor | QuantisedWeight]:
    """What a MODEL is known by: its weights without patches, quantised ones as elements that are read when asked for,
    by the host's keys."""
    stored, shapes = model.model_state_dict(), logical_shapes(model)
    weights = {key: _readable(model, key, weight) for key, weight in stored.items() if key in shapes}
    for key, parameter in model.model.named_parameters(remove_duplicate=False):
        weight = _readable(model, key, parameter)
        if is_host_quantised(weight) or is_gguf(weight):
            weights[key] = _quantised(model.model.get_submodule(key.rpartition(".")[0]), weight)
    return weights


def _readable(model, key: str, weight: torch.Tensor) -> torch.Tensor | QuantisedWeight:
    """A weight without patches; of one that was changed in place only the elements that are asked for are looked up."""
    kept = kept_elements(model, key)
    if kept is None:
        return base_weight(model, key, weight)

    def sample(start: int) -> Sample:
        return Sample(kept.base_elements(start, RUN).double().cpu().numpy(), weight.dtype, floor(weight.dtype))

    return QuantisedWeight(weight.shape, named_precision(weight.dtype), sample)


def _quantised(module, weight: torch.Tensor) -> torch.Tensor | QuantisedWeight:
    precision = precision_of(weight)
    if precision is None:
        return weight.detach().as_subclass(torch.Tensor)
    if precision == _STORED_IN_BF16:
        precision = named_precision(torch.bfloat16)
    return QuantisedWeight(torch.Size(weight.shape), precision, lambda start: _sample(module, weight, start))


def _sample(module, weight: torch.Tensor, start: int) -> Sample:
    length = row_length(weight)
    first, last = start // length, (start + RUN - 1) // length
    rows = torch.cat([dequantised_row(module, weight, row) for row in range(first, last + 1)])
    place = start - first * length
    bound = _bound(weight, first, rows[place - place % _BLOCK :][: _BLOCK + RUN])
    return Sample(rows[place : place + RUN].double().numpy(), *bound)


def _bound(weight: torch.Tensor, row: int, block: torch.Tensor) -> tuple[torch.dtype | None, float]:
    """How far rounding to this precision moves an element of these neighbours: ½ ε of a dtype, and an amount."""
    precision = precision_of(weight)
    if precision == _STORED_IN_BF16:
        return torch.bfloat16, floor(torch.bfloat16)
    if precision == "fp8 scaled":
        dtype = weight._qdata.dtype
        return dtype, floor(dtype) * row_scale(weight, row)
    if precision == "mxfp8":
        return torch.float8_e4m3fn, floor(torch.float8_e4m3fn) * _mxfp8_scale(float(block.abs().max()))
    if precision == "int8":
        # The host divides bf16 weights by the scale in bf16, which moves large ones by up to half a step more; undoing
        # a rotation then makes, of many errors, one that is rarely larger than one of them can be.
        steps = 1.75 if getattr(weight._params, "convrot", False) else 1.0
        return torch.bfloat16, steps * row_scale(weight, row)
    if precision == "GGUF Q8_0":
        # Half a step, and what the step, in fp16, is off at the largest element.
        return torch.float32, 0.57 * float(block.abs().max()) / 127
    return None, 0.0


def _mxfp8_scale(largest: float) -> float:
    """The power of two by which mxfp8 multiplies a block with this largest element."""
    return 2.0 ** math.ceil(math.log2(largest / torch.finfo(torch.float8_e4m3fn).max)) if largest else 0.0
