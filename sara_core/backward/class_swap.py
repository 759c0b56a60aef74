"""Changing what a module does by changing its class, which copies and pickles of a model survive."""

import torch


class Swapped:
    """Base of the mixins that `swap` puts before a module's class."""

    def __reduce_ex__(self, protocol):
        # Swapped classes are made at run time and cannot be found by name: pickle the classes they were made from.
        _, _, *state = super().__reduce_ex__(protocol)
        return _new, type(self).__bases__, *state


_classes: dict[tuple[type, type], type] = {}


def _swapped_class(mixin: type, original: type) -> type:
    if (mixin, original) not in _classes:
        _classes[mixin, original] = type(f"Sparse{original.__name__}", (mixin, original), {})
    return _classes[mixin, original]


def _new(mixin: type, original: type):
    swapped = _swapped_class(mixin, original)
    return swapped.__new__(swapped)


def swap(module: torch.nn.Module, mixin: type) -> None:
    """Let `module` be of its class with `mixin`, a subclass of Swapped, before it."""
    module.__class__ = _swapped_class(mixin, type(module))


def original_class(module: torch.nn.Module) -> type:
    """The class of a swapped module before the last swap."""
    return type(module).__bases__[1]


def swap_back(module: torch.nn.Module) -> None:
    """Undo the last `swap`."""
    module.__class__ = original_class(module)
