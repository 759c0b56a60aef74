"""The dense weight change that the tensors of one adapter module stand for.

LoRA (arXiv 2106.09685) and its form for convolutions, LoCon; LoHa and LoKr of LyCORIS (arXiv 2309.14859), each with
or without a Tucker core; differences and whole weights; and what depends on the base's weight: dora, oft, glora, ia3.
Tensors by the names of `PARTS` (parts.py), in float32.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch

from ...delta.entry import all_finite
from ...errors import DeltaError
from .alpha import Alpha, bounded
from .dora import of_magnitude, scaled, scaled_by_the_base
from .glora import glora
from .ia3 import of_channels, of_either
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
        raise DeltaError(
            f"The file's module '{module}' is stored as {unknown.pop()}, as in quantised files, and only its own "
            "program knows its numbers. Get the file in fp16, bf16 or fp32."
        )
    if len(kinds_of(tensors)) != 1 or len(_MAGNITUDES.keys() & tensors.keys()) > 1:
        raise _damaged(module, f"it is of no kind or several ({', '.join(sorted(tensors))})")
    kind = _KINDS[kinds_of(tensors)[0]]
    relative = any(part in _RELATIVE for part in tensors)
    meta = {part: torch.empty(tensor.shape, device="meta") for part, tensor in tensors.items()}
    try:
        _total(kind, meta, alpha, torch.empty(shape, device="meta"))
    except _OtherShape as error:
        raise _damaged(module, f"it is no change of a weight of shape {list(shape)}, the base's") from error
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        raise _damaged(module, "its tensors do not fit together or are incomplete") from error
    wide = {part: tensor.float() for part, tensor in tensors.items()}
    if broken := [part for part, tensor in wide.items() if not all_finite(tensor)]:  # a division could hide it later
        raise _damaged(module, f"it has values that are NaN or infinite ({', '.join(broken)})")
    try:
        return _total(kind, wide, alpha, weight() if relative else torch.empty(shape, device="meta"))
    except torch.linalg.LinAlgError as error:
        raise _damaged(module, "its numbers make no rotation") from error


class _OtherShape(Exception):
    """A change of another shape than the weight's."""


def _total(kind: "Kind", t: Tensors, alpha: Alpha, weight: torch.Tensor) -> torch.Tensor:
    """weight: only its shape counts, unless the kind depends on it"""
    total = kind.change(t, alpha, weight)
    if total.numel() != weight.numel() or total.shape[:1] != weight.shape[:1]:
        raise _OtherShape
    total = total.reshape(weight.shape)
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
    rotated = boft if t["oft_blocks"].dim() == 4 else oft
    return rotated(t["oft_blocks"], alpha, weight, t.get("rescale"))


def _product(t: Tensors, name: str, core: str) -> torch.Tensor:
    """a · b, or with a Tucker core (for convolutions) aᵀ · core · b over its first two sides."""
    a, b = t[f"{name}_a"], t[f"{name}_b"]
    bounded(b.shape[0])
    if core not in t:
        return a @ b
    bounded(a.shape[0])
    return torch.einsum("ij...,jr,ip->pr...", t[core], b, a)


class Kind(NamedTuple):
    """One kind of change.

    called: as its users do; change: Δ, of the module's tensors by part, its alpha and the base's weight
    """

    called: str
    change: Callable[[Tensors, Alpha, torch.Tensor], torch.Tensor]


# How the names of its parts begin → the kind.
_KINDS = {
    "up": Kind("a LoRA", _lora),
    "lora_bias": Kind("a LoRA's bias", _lora_bias),
    "hada_": Kind("a LoHa", _loha),
    "lokr_": Kind("a LoKr", _lokr),
    "oft_blocks": Kind("an OFT", _rotated),
    "a1": Kind("a GLoRA", glora),
    "outputs": Kind("an IA³", lambda t, alpha, weight: of_channels(t["outputs"], 0, weight)),
    "inputs": Kind("an IA³", lambda t, alpha, weight: of_channels(t["inputs"], 1, weight)),
    "ia3": Kind("an (IA)³ of PEFT", lambda t, alpha, weight: of_either(t["ia3"], weight)),
    "diff": Kind("a difference", lambda t, alpha, weight: t["diff"]),
    "set": Kind("a whole weight", lambda t, alpha, weight: t["set"] - weight),
}
# The key of the second is no file's: a reading puts it in the place of the first.
BY_THE_BASE = "dora_scale by the base"
_MAGNITUDES = {"dora_scale": scaled, BY_THE_BASE: scaled_by_the_base, "magnitude": of_magnitude}
_RELATIVE = {"oft_blocks", "a1", "outputs", "inputs", "ia3", "set", *_MAGNITUDES}


def kinds_of(parts: Collection[str]) -> list[str]:
    """The keys of the kinds of change that a module with these parts has; more than one is none that can be applied."""
    return [kind for kind in _KINDS if any(part.startswith(kind) for part in parts)]


def check_one_kind(module: str, parts: Collection[str]) -> None:
    """Raise DeltaError, by name, if a module has several kinds of change. parts: its, of one weight"""
    called = [_KINDS[kind].called for kind in kinds_of(parts)]
    if len(called) > 1:
        raise DeltaError(
            f"The file changes '{module}' in several ways at once, by {' and '.join(called)}: programs differ in which "
            "of them they apply, and none is known to be right. Save it again with one of them."
        )


def _damaged(module: str, finding: str) -> DeltaError:
    return DeltaError(
        f"The file's module '{module}' cannot be used: {finding}. Give the base it was trained on, or get the file "
        "again from where it came from."
    )
