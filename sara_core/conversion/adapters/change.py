"""The dense weight change that the tensors of one adapter module stand for.

LoRA (arXiv 2106.09685) and its form for convolutions, LoCon; LoHa and LoKr of LyCORIS (arXiv 2309.14859), each with
or without a Tucker core; differences and whole weights; and what depends on the base's weight: dora, oft, glora, ia3.
Tensors by the names of `PARTS` (parts.py), in float32.
"""

from collections.abc import Callable, Mapping

import torch

from ...delta.entry import all_finite
from ...errors import DeltaError
from .alpha import Alpha, bounded
from .dora import of_magnitude, scaled
from .glora import glora
from .ia3 import of_channels
from .oft import boft, oft

# PyTorch cannot widen every kind of number that a safetensors file may hold.
_STORED = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
}  # fmt: skip

Tensors = Mapping[str, torch.Tensor]


def change(
    module: str, tensors: Tensors, shape: tuple[int, ...], alpha: Alpha, weight: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """Δ of a module's weight, float32, at strength 1.

    tensors: the module's, by part, without alpha; shape: of the weight
    weight: gives the base's weight, float32 of this shape; asked by what depends on it
    Raises DeltaError, before memory is taken, if the tensors do not make a change of this shape.
    """
    if unknown := {tensor.dtype for tensor in tensors.values()} - _STORED:
        raise _damaged(module, f"it is stored as {unknown.pop()}")
    kinds = [kind for kind in _KINDS if any(part.startswith(kind) for part in tensors)]
    if not kinds:
        raise _damaged(module, "it has no weight")
    relative = any(part in _RELATIVE for part in tensors)
    if relative and len(kinds) > 1 or len(_MAGNITUDES.keys() & tensors.keys()) > 1:
        raise _damaged(module, f"it is of several kinds ({', '.join(sorted(tensors))})")
    meta = {part: torch.empty(tensor.shape, device="meta") for part, tensor in tensors.items()}
    try:
        _total(kinds, meta, alpha, torch.empty(shape, device="meta"))
    except _OtherShape as error:
        raise _damaged(module, f"it is no change of a weight of shape {list(shape)}, the base's") from error
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        raise _damaged(module, "its tensors do not fit together or are incomplete") from error
    wide = {part: tensor.float() for part, tensor in tensors.items()}
    if broken := [part for part, tensor in wide.items() if not all_finite(tensor)]:  # a division could hide it later
        raise _damaged(module, f"it has values that are NaN or infinite ({', '.join(broken)})")
    try:
        return _total(kinds, wide, alpha, weight() if relative else torch.empty(shape, device="meta"))
    except torch.linalg.LinAlgError as error:
        raise _damaged(module, "its numbers make no rotation") from error


class _OtherShape(Exception):
    """A change of another shape than the weight's."""


def _total(kinds: list[str], t: Tensors, alpha: Alpha, weight: torch.Tensor) -> torch.Tensor:
    """weight: only its shape counts, unless a kind depends on it"""
    total = None
    for kind in kinds:
        one = _KINDS[kind](t, alpha, weight)
        if one.numel() != weight.numel() or one.shape[:1] != weight.shape[:1]:
            raise _OtherShape
        one = one.reshape(weight.shape)
        total = one if total is None else total + one
    for part, magnitudes in _MAGNITUDES.items():
        if part in t:
            total = magnitudes(total, weight, t[part])
    return total


def _lora(t: Tensors, alpha: Alpha, weight: torch.Tensor) -> torch.Tensor:
    up, down = t["up"].flatten(1), t["down"]
    scale = alpha.scale(bounded(down.shape[0]))
    if "mid" not in t:
        return up @ down.flatten(1) * scale
    bounded(up.shape[1])
    return torch.einsum("mn...,im,nj->ij...", t["mid"], up, down.flatten(1)) * scale


def _lora_bias(t: Tensors, alpha: Alpha, weight: torch.Tensor) -> torch.Tensor:
    """PEFT's `lora_bias`, scaled like the product of the factors, of which `beside` is the first."""
    return t["lora_bias"] * alpha.scale(bounded(t["beside"].shape[0]))


def _loha(t: Tensors, alpha: Alpha, weight: torch.Tensor) -> torch.Tensor:
    scale = alpha.scale(t["hada_w1_b"].shape[0])
    return _product(t, "hada_w1", "hada_t1") * _product(t, "hada_w2", "hada_t2") * scale


def _lokr(t: Tensors, alpha: Alpha, weight: torch.Tensor) -> torch.Tensor:
    first = t["lokr_w1"] if "lokr_w1" in t else _product(t, "lokr_w1", "")
    second = t["lokr_w2"] if "lokr_w2" in t else _product(t, "lokr_w2", "lokr_t2")
    # Alpha counts only where there is a rank, and the second factor's comes first.
    decomposed = next((t[part] for part in ("lokr_w2_b", "lokr_w1_b") if part in t), None)
    scale = alpha.scale(None if decomposed is None else decomposed.shape[0])
    if second.dim() == 4:
        first = first[:, :, None, None]
    return torch.kron(first, second.contiguous()) * scale


def _rotated(t: Tensors, alpha: Alpha, weight: torch.Tensor) -> torch.Tensor:
    if t["oft_blocks"].dim() == 4:
        return boft(t["oft_blocks"], alpha, weight, t.get("rescale"))
    return oft(t["oft_blocks"], alpha, weight)


def _product(t: Tensors, name: str, core: str) -> torch.Tensor:
    """a · b, or with a Tucker core (for convolutions) aᵀ · core · b over its first two sides."""
    a, b = t[f"{name}_a"], t[f"{name}_b"]
    bounded(b.shape[0])
    if core not in t:
        return a @ b
    bounded(a.shape[0])
    return torch.einsum("ij...,jr,ip->pr...", t[core], b, a)


# How the names of its parts begin → the change of one kind.
_KINDS: dict[str, Callable[[Tensors, Alpha, torch.Tensor], torch.Tensor]] = {
    "up": _lora,
    "lora_bias": _lora_bias,
    "hada_": _loha,
    "lokr_": _lokr,
    "oft_blocks": _rotated,
    "a1": glora,
    "outputs": lambda t, alpha, weight: of_channels(t["outputs"], 0, weight),
    "inputs": lambda t, alpha, weight: of_channels(t["inputs"], 1, weight),
    "diff": lambda t, alpha, weight: t["diff"],
    "set": lambda t, alpha, weight: t["set"] - weight,
}
_MAGNITUDES = {"dora_scale": scaled, "magnitude": of_magnitude}
_RELATIVE = {"oft_blocks", "a1", "outputs", "inputs", "set", *_MAGNITUDES}


def _damaged(module: str, finding: str) -> DeltaError:
    return DeltaError(
        f"The file's module '{module}' cannot be used: {finding}. Give the base it was trained on, or get the file "
        "again from where it came from."
    )
