"""Changes beside the layers of a text encoder, which nodes and packs call in more ways than a wrapper can stand around:
in place of each layer's own forward, as long as the host has this patcher's CLIP loaded.
"""

import functools
from collections.abc import Callable

from comfy import patcher_extension

_KEY = "sara"


class ChangedForward:
    """What computes in the place of a layer's forward, or of a bank's `expert_linear`.

    beside: function → function that adds to what it gives, such as `Beside.beside`
    below: what another object patch has put there before, or None for the method of the layer's class
    """

    def __init__(self, module, method: str, parameter: str, change, below: Callable | None):
        self.module, self.method, self.parameter, self.change, self.below = module, method, parameter, change, below
        # Not what the module has there now: that may be of another clone, which is loaded and shares the module.
        compute = functools.partial(getattr(type(module), method), module) if below is None else below
        self._compute = change.beside(compute, module, parameter)

    def __call__(self, *args, **options):
        return self._compute(*args, **options)

    def of(self, module) -> "ChangedForward":
        """The same for the module of this name in another model."""
        below = self.below.of(module) if isinstance(self.below, ChangedForward) else self.below
        return ChangedForward(module, self.method, self.parameter, self.change, below)


def put_beside(patcher, key: str, change) -> None:
    """Have a clone of a patcher compute with `change` beside the layer whose parameter is called `key`."""
    layer, _, parameter = key.rpartition(".")
    module = patcher.model.get_submodule(layer)
    method = method_of(module)
    name = f"{layer}.{method}"
    below = patcher.object_patches.get(name)
    patcher.add_object_patch(name, ChangedForward(module, method, parameter, change, below))
    patcher.add_callback_with_key(patcher_extension.CallbacksMP.ON_DETACH, _KEY, change.release)
    if not patcher.get_callbacks(patcher_extension.CallbacksMP.ON_CLONE, _KEY):
        patcher.add_callback_with_key(patcher_extension.CallbacksMP.ON_CLONE, _KEY, _follow)


def method_of(module) -> str:
    """What of a module takes its input."""
    return "expert_linear" if hasattr(module, "expert_linear") else "forward"


def taken_off(patcher) -> list[tuple[str, object]]:
    """Take the changes off a clone of a patcher; returns them, each with its key."""
    taken = []
    for name, patch in _changed(patcher):
        layer = name.rpartition(".")[0]
        while isinstance(patch, ChangedForward):
            taken.append((f"{layer}.{patch.parameter}", patch.change))
            patch = patch.below
        if patch is None:
            del patcher.object_patches[name]
        else:
            patcher.object_patches[name] = patch
    return taken


def has_any(patcher) -> bool:
    """Whether there are such changes on a patcher."""
    return bool(_changed(patcher))


def _changed(patcher) -> list[tuple[str, ChangedForward]]:
    return [(name, patch) for name, patch in patcher.object_patches.items() if isinstance(patch, ChangedForward)]


def _follow(patcher, clone) -> None:
    """Some clones get a model of their own, with other layers."""
    if clone.model is patcher.model:
        return
    for name, patch in _changed(clone):
        clone.object_patches[name] = patch.of(clone.model.get_submodule(name.rpartition(".")[0]))
