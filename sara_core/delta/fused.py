"""Attention weights that diffusers has fused (`fuse_qkv_projections`): the model then computes with a copy of several
weights, one below the other, and those that a delta is of stand idle."""

from collections.abc import Callable, Iterator, Mapping

import torch

from .entry import SparseEntry

# The copy, and what it is made of, in the order of its rows.
_PARTS = {
    "to_qkv": ("to_q", "to_k", "to_v"), "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"), "to_added_kv": ("add_k_proj", "add_v_proj"),
}  # fmt: skip


def fused_copies(model: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    """Path of each fused layer of a model → the paths of the layers that it is a copy of."""
    return {
        f"{path}.{copy}": tuple(f"{path}.{part}" for part in _PARTS[copy])
        for path, module in model.named_modules()
        for copy in _copies_in(module)
    }


def computes_fused(model: torch.nn.Module) -> bool:
    """Whether some attention of the model computes with fused copies; they may also be left from before."""
    return any(map(_computes_fused, model.modules()))


def entries_of_copies(
    copies: Mapping[str, tuple[str, ...]], name: Callable[[str], str], entries: Mapping[str, SparseEntry],
    tensors: Mapping[str, torch.Tensor],
) -> dict[str, SparseEntry]:  # fmt: skip
    """The changes that fused layers need to have what their parts have: parameter of the copy → entry.

    copies: as from `fused_copies`; name: path of a layer → what its weights are called in the other two
    entries: of some of the model's weights; tensors: all of them
    """
    changed = {}
    for copy, parts in copies.items():
        for kind in ("weight", "bias"):
            names = [f"{name(part)}.{kind}" for part in parts]
            if any(part in entries for part in names):
                changed[f"{copy}.{kind}"] = _stacked([(entries.get(part), tensors[part].shape) for part in names])
    return changed


def _copies_in(module) -> Iterator[str]:
    children = module._modules
    if getattr(module, "fused_projections", False):
        yield from (copy for copy, parts in _PARTS.items() if all(part in children for part in (copy, *parts)))


def _computes_fused(module) -> bool:
    if not any(True for _ in _copies_in(module)):
        return False
    # The older kind of attention keeps its copies when it is unfused, and is told by the way it computes.
    return hasattr(module, "unfuse_projections") or "Fused" in type(getattr(module, "processor", None)).__name__


def _stacked(parts: list[tuple[SparseEntry | None, torch.Size]]) -> SparseEntry:
    """The changes of several weights as those of one that has their rows, one after the other."""
    indices, values, before = [], [], 0
    for entry, shape in parts:
        if entry is not None:
            indices.append(entry.indices + before)
            values.append(entry.values.float())
        before += shape.numel()
    rows = sum(shape[0] for _, shape in parts)
    return SparseEntry(torch.cat(indices), torch.cat(values), (rows, *parts[0][1][1:]))
