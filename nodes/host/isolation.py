"""Prepares a MODEL for training and is the only place that undoes it.

A MODEL shares its module with every clone of it and with the host's cache, so whatever training changes must be
undone on success, on error and on Cancel: every tensor has the bytes it had, no class and no forward stays changed.
"""

import logging
from contextlib import ExitStack, contextmanager

import comfy.model_management
import torch

from ...sara_core.attachment import detach_model, layers
from ...sara_core.backprop import AddedCopy, attach, is_attached
from ...sara_core.delta import check_precision
from ...sara_core.errors import UnsupportedModelError
from ...sara_core.selection import Selection, name_is_included, select
from ...sara_core.store import Store
from ...sara_core.support import Support
from . import checkpointing
from .weights import HostWeight, can_be_written

TRAINED_PART = "diffusion_model"


class TrainingModel:
    """A MODEL ready for training.

    patcher: the loaded model patcher; its .model runs with sparse layers
    store, selection: Δ, and the elements it belongs to, named by ComfyUI's weight keys
    """

    def __init__(self, patcher, store: Store, selection: Selection):
        self.patcher, self.store, self.selection = patcher, store, selection
        self.device = patcher.load_device


@contextmanager
def training_model(
    model, rule: dict, batch_shape, include=(), exclude=(), gradient_checkpointing=True, route="auto"
):
    """Load `model`, choose elements by `rule` (keyword of `select` → value), and attach sparse backward to it.

    batch_shape: shape of a batch of latents; the host leaves room for it when it loads the model
    route: way of computing weight gradients (sara_core.weight_gradient.ROUTES)

    To be entered outside inference mode. Raises UnsupportedModelError or SelectionError, with the MODEL untouched.
    """
    with torch.inference_mode():  # in which the host loads models for everything else
        patcher = _resident_patcher(model)
        comfy.model_management.load_models_gpu([patcher], memory_required=patcher.memory_required(list(batch_shape)))
    module = getattr(patcher.model, TRAINED_PART)
    weights = _trainable_weights(patcher, module, include, exclude)
    selection = select({name: _base_weight(patcher, name, layer) for name, layer in weights.items()}, **rule)
    support = Support.from_indices(selection.indices, {name: layer.weight.shape for name, layer in weights.items()})
    selection = selection.without_indices()
    store = Store(support, patcher.load_device)

    with ExitStack() as undo:
        _mark_training(undo)
        written = _attach(undo, module, store, weights, patcher.load_device, route)
        _replace_inference_tensors(undo, module)
        if gradient_checkpointing:
            for block in checkpointing.blocks(module):
                undo.callback(checkpointing.install(block))
        logging.info(
            f"SaRA: training {selection.count:,} of {selection.candidates:,} elements ({selection.density:.3%}), "
            f"|w| up to {selection.theta:.3g}, in {len(support)} weights, {written} of them written in place"
        )
        yield TrainingModel(patcher, store, selection)


def _resident_patcher(model):
    """A patcher whose weights this process may write: dynamic ones map theirs read-only from the file."""
    is_dynamic = getattr(model, "is_dynamic", lambda: False)
    if not is_dynamic():
        return model
    if getattr(model, "cached_patcher_init", None) is None:
        raise UnsupportedModelError(
            "This MODEL is streamed from its file (dynamic VRAM) and was changed by a node in a way that cannot be "
            "loaded again. Connect the loader directly, or start ComfyUI with --disable-dynamic-vram."
        )
    return model.clone(disable_dynamic=True)


def _trainable_weights(patcher, module, include, exclude):
    """ComfyUI weight key → layer, for every Linear and Conv weight that passes the patterns; a tied one once."""
    weights, seen = {}, set()
    for name, layer in layers(module).items():
        key = f"{TRAINED_PART}.{name}.weight"
        if is_attached(layer):
            raise UnsupportedModelError("This MODEL is already being trained: wait for the other training to end.")
        if id(layer.weight) in seen or not name_is_included(key, include, exclude):
            continue
        check_precision(key, layer.weight)
        seen.add(id(layer.weight))
        weights[key] = layer
    return weights


def _base_weight(patcher, key, layer):
    """The weight without the patches (LoRAs) that are on the MODEL: they must not decide what is small."""
    return patcher.backup[key].weight if key in patcher.backup else layer.weight


def _mark_training(undo: ExitStack):
    """Model code that would compute with kernels for inference only asks the host for this flag."""
    management = comfy.model_management
    if hasattr(management, "in_training"):
        undo.callback(setattr, management, "in_training", management.in_training)
        management.in_training = True


def _attach(undo: ExitStack, module, store: Store, weights, device, route) -> int:
    """Attach every Linear and Conv layer; returns how many weights are written in place."""
    number_of = {}
    for number, segment in enumerate(store.support):
        layer = weights[segment.name]
        number_of[id(layer.weight)] = number
        store.bind(number, layer, in_place=can_be_written(layer, device))
    undo.callback(detach_model, module)
    undo.callback(store.restore)
    for layer in layers(module).values():
        number = number_of.get(id(layer.weight))
        in_place = number is None or store.base[number] is not None
        attach(layer, store, number, HostWeight(None if in_place else AddedCopy(store, number)), route)
    return sum(base is not None for base in store.base)


def _replace_inference_tensors(undo: ExitStack, module):
    """Autograd cannot save tensors made in inference mode, as the host's all are. Attached layers never save their
    weights; norms, embeddings and buffers, which are small, are replaced by copies for the time of training."""
    for part in module.modules():
        if is_attached(part):
            continue
        for tensors in (part._parameters, part._buffers):
            for name, tensor in list(tensors.items()):
                if tensor is not None and tensor.is_inference():
                    undo.callback(tensors.__setitem__, name, tensor)
                    copy = tensor.detach().clone()
                    is_parameter = tensors is part._parameters
                    tensors[name] = torch.nn.Parameter(copy, requires_grad=False) if is_parameter else copy
