"""Saying once that Load LoRA's patches make the host round a quantised weight anew, and what does not.

The host tells an adapter neither the model nor that it will round: the MODEL is found among the callers while it is
loaded, and among the loaded ones once it computes.
"""

import inspect
import logging

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from comfy.utils import get_attr

from .precision import is_gguf, precision_of

# This module, the adapter, the loop of comfy.lora and the patcher, with one more for a pack that wraps one of them.
_CALLERS = 5
_told: object = None


def tell_once(key: str, loaded_keys: set[str]) -> None:
    """Log that the patch of this weight is rounded, once for a MODEL with its patches; nothing for weights that are
    not quantised, or whose layer adds patches to a dequantised copy.

    loaded_keys: of the adapter that is asked for the weight; the host keeps the object when it rebuilds adapters
    """
    global _told
    patcher = _being_loaded() or _streamed(key, loaded_keys)
    if patcher is None or patcher.patches_uuid == _told:
        return
    weight = get_attr(patcher.model, key)
    kind = precision_of(weight)
    if kind is None or is_gguf(weight):
        return
    _told = patcher.patches_uuid
    logging.warning(
        f"SaRA: this model is quantised ({kind}), and ComfyUI rounds the weights that Load LoRA changes anew: the "
        "delta does not arrive exactly, and what it leaves alone may move too. Use SaRA Loader instead."
    )


def _being_loaded() -> ModelPatcher | None:
    # Of the callers only: a frame that held itself would live on, with all of theirs and their weights.
    frame = inspect.currentframe().f_back
    for _ in range(_CALLERS):
        if frame is None:
            return None
        if isinstance(patcher := frame.f_locals.get("self"), ModelPatcher):
            return patcher
        frame = frame.f_back
    return None


def _streamed(key: str, loaded_keys: set[str]) -> ModelPatcher | None:
    """With dynamic memory the host rounds a patched weight while the model computes; else it adds patches then."""
    for loaded in comfy.model_management.current_loaded_models:
        patcher = loaded.model
        if patcher is not None and getattr(patcher, "is_dynamic", bool)():
            patches = patcher.patches.get(key, ())
            if any(getattr(patch[1], "loaded_keys", None) is loaded_keys for patch in patches):
                return patcher
    return None
