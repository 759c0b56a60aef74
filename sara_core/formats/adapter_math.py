"""The dense weight change that the tensors of one adapter module stand for.

LoRA (arXiv 2106.09685) and its form for convolutions, LoCon; LoHa and LoKr of LyCORIS (arXiv 2309.14859), each with
or without a Tucker core; and plain differences. Tensors by the names of `PARTS`, in float32.
"""

import math
from collections.abc import Callable, Mapping

import torch

from ..errors import DeltaError

# The same part has had several names; the longest ending that fits a tensor's name counts.
PARTS = {
    ".lora_up.weight": "up", ".lora_down.weight": "down", ".lora_mid.weight": "mid",
    ".lora_B.weight": "up", ".lora_A.weight": "down",
    ".lora_B.default.weight": "up", ".lora_A.default.weight": "down",
    ".lora_B": "up", ".lora_A": "down",
    ".lora.up.weight": "up", ".lora.down.weight": "down",
    "_lora.up.weight": "up", "_lora.down.weight": "down",
    ".lora_linear_layer.up.weight": "up", ".lora_linear_layer.down.weight": "down",
    ".alpha": "alpha",
    **{f".hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{part}": f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    ".diff": "diff", ".w_norm": "diff",
    ".diff_b": "bias", ".b_norm": "bias",
}  # fmt: skip
MAX_RANK = 4096

Tensors = Mapping[str, torch.Tensor]


def change(module: str, tensors: Tensors, shape: tuple[int, ...], alpha: float | None) -> torch.Tensor:
    """Δ of a module's weight, float32, at strength 1.

    tensors: the module's, by part, without alpha; shape: of the weight; alpha: the file's, None for 1 · rank
    Raises DeltaError, before memory is taken, if the tensors do not make a change of this shape.
    """
    if not all(tensor.is_floating_point() for tensor in tensors.values()):
        raise _damaged(module, "it is stored as whole numbers")
    rules = [rule for first, rule in _RULES.items() if any(part.startswith(first) for part in tensors)]
    meta = {part: torch.empty(tensor.shape, device="meta") for part, tensor in tensors.items()}
    try:
        made = [rule(meta, alpha) for rule in rules]
    except (RuntimeError, KeyError, IndexError) as error:
        raise _damaged(module, "its tensors do not fit together or are incomplete") from error
    if not made:
        raise _damaged(module, "it has no weight")
    if any(math.prod(one.shape) != math.prod(shape) or one.shape[:1] != shape[:1] for one in made):
        raise _damaged(module, f"it is no change of a weight of shape {list(shape)}, the base's")
    wide = {part: tensor.float() for part, tensor in tensors.items()}
    first, *others = (rule(wide, alpha).reshape(shape) for rule in rules)
    return sum(others, first)


def _lora(t: Tensors, alpha: float | None) -> torch.Tensor:
    up, down = t["up"].flatten(1), t["down"]
    scale = _scale(alpha, _rank(down.shape[0]))
    if "mid" not in t:
        return up @ down.flatten(1) * scale
    _rank(up.shape[1])
    return torch.einsum("mn...,im,nj->ij...", t["mid"], up, down.flatten(1)) * scale


def _loha(t: Tensors, alpha: float | None) -> torch.Tensor:
    return _product(t, "hada_w1", "hada_t1") * _product(t, "hada_w2", "hada_t2") * _scale(
        alpha, t["hada_w1_b"].shape[0]
    )


def _lokr(t: Tensors, alpha: float | None) -> torch.Tensor:
    first = t["lokr_w1"] if "lokr_w1" in t else _product(t, "lokr_w1", "")
    second = t["lokr_w2"] if "lokr_w2" in t else _product(t, "lokr_w2", "lokr_t2")
    # Alpha counts only where there is a rank, and the second factor's comes first.
    decomposed = next((t[part] for part in ("lokr_w2_b", "lokr_w1_b") if part in t), None)
    scale = 1.0 if decomposed is None else _scale(alpha, decomposed.shape[0])
    if second.dim() == 4:
        first = first[:, :, None, None]
    return torch.kron(first, second.contiguous()) * scale


def _product(t: Tensors, name: str, core: str) -> torch.Tensor:
    """a · b, or with a Tucker core (for convolutions) aᵀ · core · b over its first two sides."""
    a, b = t[f"{name}_a"], t[f"{name}_b"]
    _rank(b.shape[0])
    if core not in t:
        return a @ b
    _rank(a.shape[0])
    return torch.einsum("ij...,jr,ip->pr...", t[core], b, a)


def _scale(alpha: float | None, rank: int) -> float:
    return 1.0 if alpha is None else alpha / rank


def _rank(rank: int) -> int:
    """Bounds what an intermediate product takes: a small file can claim a large rank."""
    if not 0 < rank <= MAX_RANK:
        raise IndexError(rank)
    return rank


_RULES: dict[str, Callable[[Tensors, float | None], torch.Tensor]] = {
    "up": _lora,
    "hada_": _loha,
    "lokr_": _lokr,
    "diff": lambda t, alpha: t["diff"],
}


def _damaged(module: str, finding: str) -> DeltaError:
    return DeltaError(f"The file's module '{module}' cannot be used: {finding}. Give the base it was trained on.")
