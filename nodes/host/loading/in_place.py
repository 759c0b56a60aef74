"""Patches of deltas executed in place while a model is fully loaded: only the elements that they change are written.

The patches stay where the host keeps them, and so does everything that follows from them. Another way to carry out
such patches is put before four methods of the host's ModelPatcher. It serves weights of which all patches are ours,
and which nobody else holds; all others, and all patchers of other kinds, go the host's way.
"""

import functools
import inspect
import logging
import os
import threading
from collections.abc import Callable, Sequence

import comfy.model_patcher
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP

from ....sara_core.tensors.elements import has_own_operations, overlaps_itself
from ..mapped import may_be_mapped
from ..patching import SaRAAdapter
from ..unpatched import never_patched
from .kept import Change, KeptElements
from .owned import is_owned

SWITCH = "SARA_IN_PLACE"
_Patcher = comfy.model_patcher.ModelPatcher
# Method → what it must take, or this host is another one than this was written for.
_REPLACED = {
    "load": ("device_to",),
    "patch_weight_to_device": ("key", "device_to", "return_weight"),
    "partially_load": ("device_to", "extra_memory", "force_patch_weights"),
    "unpatch_model": ("unpatch_weights",),
}
# In these the host's own way rounds nothing but the sum.
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Undoing may come from any thread.
_lock = threading.RLock()
# id of a patcher that is being loaded → what will be written in place of which weights.
_planned: dict[int, dict[str, list[Change]]] = {}


def register_in_place() -> None:
    """Let the host's patcher carry out patches of deltas in place; SARA_IN_PLACE=0 leaves it out."""
    if os.environ.get(SWITCH) == "0" or hasattr(_Patcher.load, "sara_core"):
        return
    for name, needed in _REPLACED.items():
        if not set(needed) <= inspect.signature(getattr(_Patcher, name, lambda: None)).parameters.keys():
            logging.info(f"SaRA: this ComfyUI's {name} is another one: deltas are put on weight by weight.")
            return
    for name, before in (
        ("load", _load), ("patch_weight_to_device", _patch_weight_to_device), ("partially_load", _partially_load),
        ("unpatch_model", _unpatch_model),
    ):  # fmt: skip
        setattr(_Patcher, name, _with(before, getattr(_Patcher, name)))


def _with(before: Callable, original: Callable) -> Callable:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def method(self, *args, **kwargs):
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        return before(self, bound.arguments, lambda: original(self, *args, **kwargs))

    method.sara_core = True
    return method


def _load(self, given: dict, original: Callable):
    if not _is_the_hosts_own(self):
        return original()
    _planned[id(self)] = _plan(self)
    try:
        return original()
    finally:
        del _planned[id(self)]


def _patch_weight_to_device(self, given: dict, original: Callable):
    key, device = given["key"], given["device_to"]
    plan = _planned.get(id(self), {})
    as_when_loading = not any(value for name, value in given.items() if name not in ("self", "key", "device_to"))
    if key not in plan or device is None or not as_when_loading:
        return original()
    with _lock:
        _write_anew(self, key, plan.pop(key), device)
    return None


def _partially_load(self, given: dict, original: Callable):
    if given["force_patch_weights"] or given["extra_memory"] < 0 or not _is_fully_loaded(self, given["device_to"]):
        return original()
    with _lock:
        if (plan := _exchange_plan(self)) is not None:
            try:
                _exchange(self, plan)
            except BaseException:
                self.detach()
                raise
    return original()


def _unpatch_model(self, given: dict, original: Callable):
    if given["unpatch_weights"]:
        with _lock:
            if any(isinstance(kept, KeptElements) for kept in self.backup.values()):
                # In the host's order: what was put on last comes off first.
                self.eject_model()
                self.unpatch_hooks()
                _restore(self, [key for key in self.backup if _can_be_restored(self, key)])
    return original()


def _is_the_hosts_own(patcher) -> bool:
    return type(patcher) is _Patcher and not (
        patcher.weight_inplace_update or patcher.hook_patches or patcher.forced_hooks or patcher.hook_backup
    )


def _plan(patcher) -> dict[str, list[Change]]:
    """What can be written in place of a model that is about to be loaded."""
    planned = {}
    for key, patches in patcher.patches.items():
        if key not in patcher.backup and (changes := _changes(patcher, key, patches)) is not None:
            planned[key] = changes
    return planned


def _changes(patcher, key: str, patches: Sequence[tuple]) -> list[Change] | None:
    """A weight's patches as changes of some elements, None if the host must carry them out."""
    module, name = comfy.utils.resolve_attr(patcher.model, key)
    weight = getattr(module, "_parameters", {}).get(name)
    if weight is None or hasattr(module, f"set_{name}") or hasattr(module, f"convert_{name}"):
        return None
    shape = tuple(weight.shape)
    if not _is_writable(weight) or not all(_is_ours(patch, shape) for patch in patches):
        return None
    del weight  # or it had one holder more
    if not is_owned(module, name, others=int(isinstance(patcher.backup.get(key), KeptElements))):
        return None
    return [Change(*adapter.weights[0], strength) for strength, adapter, *_ in patches]


def _is_writable(weight: torch.Tensor) -> bool:
    if type(weight) is not torch.nn.Parameter or weight.is_meta or weight.dtype not in _DTYPES:
        return False
    return not (has_own_operations(weight) or overlaps_itself(weight) or may_be_mapped(weight))


def _is_ours(patch: tuple, shape: tuple[int, ...]) -> bool:
    _, adapter, strength_model, offset, function = patch
    return (
        type(adapter) is SaRAAdapter
        and strength_model == 1.0
        and offset is None
        and function is None
        and tuple(adapter.weights[1]) == shape
    )


def _write_anew(patcher, key: str, changes: list[Change], device: torch.device) -> None:
    module, name = comfy.utils.resolve_attr(patcher.model, key)
    if module._parameters[name].device != device:
        with torch.inference_mode(module._parameters[name].is_inference()):
            comfy.utils.set_attr_param(patcher.model, key, module._parameters[name].detach().to(device))
    patcher.backup[key] = KeptElements(module._parameters[name], changes, patcher.offload_device)


def _is_fully_loaded(patcher, device: torch.device) -> bool:
    """Whether the model lies there whole, with the weights of another MODEL, and all else is as this one has it."""
    model = patcher.model
    if not _is_the_hosts_own(patcher) or patcher.get_all_callbacks(CallbacksMP.ON_LOAD):
        return False
    if model.current_weight_patches_uuid in (None, patcher.patches_uuid):
        return False
    return not model.model_lowvram and model.model_loaded_weight_memory > 0 and model.device == device


def _exchange_plan(patcher) -> dict[str, list[Change]] | None:
    """What each weight is to have, if that can be had by writing elements alone."""
    if not all(_can_be_restored(patcher, key) for key in patcher.backup):
        return None
    if not all(_is_cast_alike(patcher, name, module) for name, module in patcher.model.named_modules()):
        return None
    beside = set(never_patched(patcher, patcher.patches))
    plan = {}
    for key, patches in patcher.patches.items():
        if key not in beside:
            plan[key] = _changes(patcher, key, patches)
    return None if None in plan.values() else plan


def _is_cast_alike(patcher, name: str, module: torch.nn.Module) -> bool:
    """Whether a loaded module treats its weights as the patcher would have it do."""
    wrappers = patcher.weight_wrapper_patches
    return (
        getattr(module, "comfy_force_cast_weights", False) == patcher.force_cast_weights
        and getattr(module, "weight_function", []) == wrappers.get(f"{name}.weight", [])
        and getattr(module, "bias_function", []) == wrappers.get(f"{name}.bias", [])
    ) or not hasattr(module, "comfy_cast_weights")


def _exchange(patcher, plan: dict[str, list[Change]]) -> None:
    model, backup = patcher.model, patcher.backup
    # Whatever is interrupted from here on is nobody's, and taken off by whoever comes next.
    model.current_weight_patches_uuid = object()
    _restore(patcher, [key for key in backup if key not in plan])
    for key, changes in plan.items():
        kept = backup.get(key)
        if kept is None:
            _write_anew(patcher, key, changes, model.device)
        elif kept.has_support_of(changes):
            kept.write(changes)
        else:
            backup[key] = KeptElements(kept.parameter, changes, patcher.offload_device, instead_of=kept)
    model.current_weight_patches_uuid = patcher.patches_uuid


def _can_be_restored(patcher, key: str) -> bool:
    """Whether an entry of the backup is ours, and the model still computes with the parameter it is of, which nobody
    else holds: they would see the base in it, where the host's way leaves them what they have."""
    if not isinstance(patcher.backup[key], KeptElements):
        return False
    module, name = comfy.utils.resolve_attr(patcher.model, key)
    return module._parameters.get(name) is patcher.backup[key].parameter and is_owned(module, name, others=1)


def _restore(patcher, keys: Sequence[str]) -> None:
    for key in keys:
        patcher.backup[key].restore()
        del patcher.backup[key]
