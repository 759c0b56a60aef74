"""Gradient checkpointing of a model's blocks: their activations are recomputed in the backward instead of kept.

torch.utils.checkpoint does not do here. Blocks of several families (Flux, Chroma, HunyuanVideo, LTX) write over their
hidden states (`x += …`) after autograd has saved them: without checkpointing autograd notices and refuses, but what
torch's checkpoint recomputes is kept by reference and unchecked, so the gradients are silently wrong. This one copies
what such a block saves, and changes nothing for the others.

At a greater depth the parts of a block (attention, feed-forward) are checkpointed instead of the block: more inputs are
kept, less is recomputed at a time. A block that writes over its hidden states between its parts stays whole.
"""

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import torch
from torch.autograd.graph import saved_tensors_hooks

from ....sara_core.backward.layer import is_attached
from ....sara_core.errors import UnsupportedModelError

CONTAINERS = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential)
# Blocks although they hold lists: what Wan's models add sound with writes over the hidden states itself.
_WITH_LISTS = {"AudioInjector_WAN"}


def blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules worth checkpointing: the outermost with at least two trained or frozen layers that are no mere
    containers and hold no list of further blocks (residual blocks and transformer blocks, in every family)."""
    found = []

    def descend(module):
        for child in module.children():
            holds_blocks = any(isinstance(m, (torch.nn.ModuleList, torch.nn.ModuleDict)) for m in child.modules())
            if isinstance(child, CONTAINERS) or (holds_blocks and type(child).__name__ not in _WITH_LISTS):
                descend(child)
            elif sum(is_attached(m) for m in child.modules()) > 1:
                found.append(child)

    descend(model)
    return found


def parts(block: torch.nn.Module, depth: int) -> list[torch.nn.Module]:
    """What is checkpointed in a block at a depth: 1 is the block itself, 2 what it is made of, and so on, as far as
    there is something that holds several layers."""
    found = [block]
    for _ in range(depth - 1):
        found = [part for module in found for part in blocks(module) or [module]]
    return found


def install_all(model: torch.nn.Module, depth: int) -> Iterator[Callable[[], None]]:
    """Checkpoint all blocks of a model at a depth, 0 being none but those that have no gradient without it; yields
    functions that undo it. Attach sparse layers before, detach them after."""
    for block in blocks(model):
        inner = [part for part in parts(block, depth) if part is not block]
        yield install(block, always=depth > 0 and not inner)
        for part in inner:
            yield install(part, inside=block.forward)


def install(module: torch.nn.Module, always: bool = True, inside: "Block | None" = None) -> Callable[[], None]:
    """Checkpoint one block; returns a function that undoes it.

    always: otherwise the block is checkpointed the first time, and later only if it writes over its inputs, which has
        no gradient without that
    inside: the block that this is a part of, and as long as that one is checkpointed as a whole this part is not
    """
    overridden = module.__dict__.get("forward")
    module.forward = Block(module, always, inside)

    def undo():
        if overridden is None:
            del module.forward
        else:
            module.forward = overridden

    return undo


def installed(model: torch.nn.Module) -> list["Block"]:
    """What `install` has put on the modules of a model."""
    return [part.forward for part in model.modules() if isinstance(part.__dict__.get("forward"), Block)]


class Block:
    """One module's forward under checkpointing, and what is known of it.

    overwrites: whether it writes over tensors that it was given or that autograd has saved; None before its first run
    recomputes: whether it is being recomputed just now
    """

    def __init__(self, module: torch.nn.Module, always: bool, inside: "Block | None" = None):
        self.name, self.forward, self.always, self.inside = type(module).__name__, module.forward, always, inside
        self.overwrites: bool | None = None
        self.recomputes = False

    def __call__(self, *args, **kwargs):
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        left_to_the_whole = self.inside is not None and self.inside.is_whole()
        if not left_to_the_whole and (self.always or self.overwrites is not False):
            return _Run(self, args, kwargs).output()
        args, kwargs = _inputs(args, kwargs, copies=False)
        return self.forward(*args, **kwargs)

    def is_whole(self) -> bool:
        """Whether its parts are to leave checkpointing to it."""
        return self.overwrites is not False or self.recomputes

    def found_overwriting(self):
        if not self.overwrites and not self.always:
            logging.info(f"SaRA: {self.name} writes over its inputs and needs gradient checkpointing: left on for it.")
        self.overwrites = True


class _Holder:
    """Stands in the graph for a tensor that autograd wanted to save; `value` is there after the recomputation."""

    value: torch.Tensor | None = None


class _Run:
    """One forward of a block: keeps the inputs, and recomputes from them what autograd saves."""

    def __init__(self, block: Block, args: tuple, kwargs: dict):
        # Further blocks write into the same options: which block this is, that nodes' patches ask for.
        self.block, (self.args, self.kwargs) = block, _with_own_dictionaries(args, kwargs)
        self.versions = _versions(args, kwargs)
        self.holders: list[weakref.ref[_Holder]] = []
        self.shapes: list[torch.Size] = []

    def output(self):
        block = self.block
        # The kept inputs must stay as they are; whether the block would change them shows on copies.
        args, kwargs = _inputs(self.args, self.kwargs, copies=block.overwrites is not False)
        before = _versions(args, kwargs)
        with saved_tensors_hooks(self._hold, self._value):
            output = block.forward(*args, **kwargs)
        if _versions(args, kwargs) != before:
            block.found_overwriting()
        elif block.overwrites is None:
            block.overwrites = False
        return output

    def _hold(self, tensor):
        holder = _Holder()
        self.holders.append(weakref.ref(holder))
        self.shapes.append(tensor.shape)
        return holder

    def _value(self, holder: _Holder) -> torch.Tensor:
        if holder.value is None:
            self._recompute()
        return holder.value

    def _recompute(self):
        if _versions(self.args, self.kwargs) != self.versions:
            remedy = "leave out the node that changes the model, or train another model"
            if self.block.inside is not None:
                remedy = "set checkpoint_depth to 1"
            raise UnsupportedModelError(
                f"This model writes over what it gives to its {self.block.name}, which training cannot follow: "
                f"{remedy}."
            )
        saved = self._saved_again()
        if any(_version(tensor) != version for tensor, version in saved):
            self.block.found_overwriting()
            saved = self._saved_again()
        if [tensor.shape for tensor, _ in saved] != self.shapes:
            raise UnsupportedModelError(
                f"A {self.block.name} of this model does not compute the same twice, which gradient checkpointing "
                "needs: switch gradient_checkpointing off."
            )
        for reference, (tensor, _) in zip(self.holders, saved):
            holder = reference()
            if holder is not None:
                holder.value = tensor

    def _saved_again(self) -> list[tuple[torch.Tensor, int]]:
        """What autograd saves in the same order as the first time, each with its version when it was saved."""
        copies, saved = self.block.overwrites, []

        def keep(tensor):
            tensor = tensor.detach().clone() if copies else tensor.detach()
            saved.append((tensor, _version(tensor)))

        def not_used(_):
            raise AssertionError("the recomputed graph has no backward")

        self.block.recomputes = True
        try:
            with torch.enable_grad():
                args, kwargs = _inputs(self.args, self.kwargs, copies)
                with saved_tensors_hooks(keep, not_used):
                    self.block.forward(*args, **kwargs)
        finally:
            self.block.recomputes = False
        return saved


def _with_own_dictionaries(args: tuple, kwargs: dict) -> tuple[list, dict]:
    def own(value):
        return dict(value) if isinstance(value, dict) else value

    return [own(value) for value in args], {name: own(value) for name, value in kwargs.items()}


def _inputs(args: Sequence, kwargs: dict, copies: bool) -> tuple[list, dict]:
    """What to call a block with. Dictionaries are always copied, since blocks write into shared options.

    A tensor is copied, or else passed as a view of itself: either way the gradients of its uses in the block are summed
    before those of its other uses, so that a run has the same bits whether, and since when, a block is checkpointed.
    """

    def own(value):
        if isinstance(value, torch.Tensor):
            return value.clone() if copies else value.view_as(value)
        return value

    args, kwargs = _with_own_dictionaries(args, kwargs)
    return [own(value) for value in args], {name: own(value) for name, value in kwargs.items()}


def _versions(args, kwargs) -> list[int]:
    """How often each tensor among the arguments has been written to."""
    return [_version(value) for value in chain(args, kwargs.values()) if isinstance(value, torch.Tensor)]


def _version(tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # those are not counted, and may not be written to here
