"""Prepares a MODEL for training and is the only place that undoes it.

A MODEL shares its module with every clone of it and with the host's cache, so whatever training changes must be
undone on success, on error and on Cancel: every tensor has the bytes it had, no class and no forward stays changed.
"""

import functools
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import comfy.model_management
import torch

from ....sara_core.backward.attach import attach_layers, detach_model, layers
from ....sara_core.backward.layer import is_attached
from ....sara_core.backward.parameters import ParameterOf
from ....sara_core.backward.store import Store
from ....sara_core.backward.support import Support
from ....sara_core.errors import SelectionError, UnsupportedModelError
from ....sara_core.names.patterns import ALL_LAYERS
from ....sara_core.selection.gradient import GradientScores
from ....sara_core.selection.rules import SMALLEST, named_rule
from ....sara_core.selection.select import Selection, select
from ....sara_core.selection.trainable import left_out, trainable_weights
from . import checkpointing
from ..precision import ordinary
from ..quantised_layers import with_added_weights
from .dequantised import base_weights_of, read_by_store
from .inference_methods import run_with_gradients
from .kernels import use_differentiable_kernels
from .memories import start_without_memories
from .parts import DIFFUSION_MODEL, TEXT_ENCODERS, Part, joined
from .refusals import check_layers, check_trainable
from .text_encoders import EncodersInTraining
from .weights import HostWeight, can_be_written

FP16_LOSS_SCALE = 2.0**12


class TrainingModel:
    """A MODEL ready for training.

    parts: the models that the loss goes through, loaded, the diffusion model first; they run with sparse layers
    store, selection: Δ, and the elements it belongs to, by a delta's names
    left_out: elements of biases, norms and others that are not trained: what to call them → how many
    encoders: of the CLIP that is trained too, None if none is

    patcher: the diffusion model's
    """

    def __init__(
        self, parts: Sequence[Part], store: Store, selection: Selection, left_out: dict[str, int],
        encoders: EncodersInTraining | None = None,
    ):  # fmt: skip
        self.parts, self.store, self.selection, self.left_out = parts, store, selection, left_out
        self.encoders, self.patcher = encoders, parts[0].patcher
        self.device = self.patcher.load_device

    def modules(self) -> torch.nn.Module:
        """The host's models of all parts, in one module that computes nothing."""
        return joined(part._replace(module=part.patcher.model) for part in self.parts)

    def reload(self) -> None:
        """Bring the models back to their device with Δ in them, after something else has used the host's memory.

        What the host has moved in inference mode meanwhile is made ordinary again.
        """
        with torch.inference_mode():
            comfy.model_management.load_models_gpu([part.patcher for part in self.parts])
        _replace_inference_tensors(ExitStack(), self.parts)
        self.store.write(frozen=True)


@contextmanager
def training_model(
    model, asked_for: dict, batch_shape, include=(), exclude=(), gradient_checkpointing=True, route="auto",
    preset=ALL_LAYERS, scoring_loss: Callable | None = None, checkpoint_depth=1, clip=None,
    trained: Collection[str] = (DIFFUSION_MODEL,),
):  # fmt: skip
    """Load `model`, choose the elements `asked_for` (keyword of `select` → value), and attach sparse backward to it.

    batch_shape: shape of a batch of latents; the host leaves room for it when it loads the model
    include, exclude, preset: sara_core.names.patterns.Choice
    gradient_checkpointing: of all blocks; otherwise only of those that have no gradient without it
    checkpoint_depth: 1 = of whole blocks, 2 = of their parts, and so on (checkpointing.py)
    route: way of computing weight gradients (sara_core.backward.weight_gradient.ROUTES)
    scoring_loss: for a rule that needs a loss: (patcher, encoders) → function that computes the same loss each time it
        is called
    clip: the CLIP whose text encoders the loss goes through, None if they are not trained
    trained: names of the parts whose weights are chosen from (parts.py)

    To be entered outside inference mode. Raises UnsupportedModelError or SelectionError, with MODEL and CLIP untouched.
    """
    check_trainable(model)
    model = with_added_weights(model)
    with torch.inference_mode():  # in which the host loads models for everything else
        patcher = _resident_patcher(model)
        encoders = None if clip is None else EncodersInTraining(clip, _resident_encoders(clip), patcher)
        parts = _parts(patcher, encoders)
        room = patcher.memory_required(list(batch_shape))
        comfy.model_management.load_models_gpu([part.patcher for part in parts], memory_required=room)
    chosen_from, module = joined(part for part in parts if part.name in trained), joined(parts)
    weights = trainable_weights(
        chosen_from, include, exclude, preset, find_layers=layers, check_weight=_in_any_precision
    )
    if encoders is not None:
        weights = _with_a_part(weights, encoders, patcher)
    for part in parts:
        check_layers(part.module, patcher.load_device)
    untrained = left_out(chosen_from, weights, layers)

    @contextmanager
    def attached(store: Store, is_written=lambda holder: False):
        with ExitStack() as undo:
            _mark_training(undo)
            undo.callback(use_differentiable_kernels())
            undo.callback(detach_model, module)
            undo.callback(store.restore)
            if encoders is not None:
                undo.callback(encoders.patcher.model.reset_clip_options)
            read = functools.partial(read_by_store, device=patcher.load_device)
            attach_layers(module, layers(module), store, weights, route, is_written, HostWeight, read)
            _replace_inference_tensors(undo, parts)
            start_without_memories(undo, module)
            run_with_gradients(undo, module)
            for part in parts:
                for undo_one in checkpointing.install_all(
                    part.module, checkpoint_depth if gradient_checkpointing else 0
                ):
                    undo.callback(undo_one)
            yield

    _, rule = named_rule(asked_for.get("rule", SMALLEST))
    by_gradient = None
    if rule.needs_loss:
        by_gradient = _gradient_scores(patcher, attached, scoring_loss(patcher, encoders)).largest
    # Patches on the MODEL must not decide what is small.
    selection = select(base_weights_of(parts, weights), **asked_for, by_gradient=by_gradient)
    shapes = {name: holder.weight.shape for name, holder in weights.items()}
    store = Store(Support.from_indices(selection.indices, shapes), patcher.load_device)
    selection = selection.without_indices()

    with attached(store, lambda holder: _can_be_written(holder, patcher.load_device)):
        _report(store, selection, untrained)
        yield TrainingModel(parts, store, selection, untrained, encoders)


def _parts(patcher, encoders: EncodersInTraining | None) -> list[Part]:
    parts = [Part(DIFFUSION_MODEL, patcher, getattr(patcher.model, DIFFUSION_MODEL))]
    if encoders is not None:
        parts.append(Part(TEXT_ENCODERS, encoders.patcher, encoders.patcher.model))
    return parts


def _with_a_part(weights: dict, encoders: EncodersInTraining, patcher) -> dict:
    unused = encoders.unused_parts(patcher)
    used = {name: holder for name, holder in weights.items() if encoders.uses(name, unused)}
    if not used:
        raise SelectionError(
            "None of the chosen weights has a part in what this CLIP gives the MODEL: train other layers, or connect "
            "the CLIP from before CLIP Set Last Layer."
        )
    return used


def _in_any_precision(name: str, weight) -> None:
    """What the host dequantises is trained; what nobody knows is tried (self_check.py)."""


def _gradient_scores(patcher, attached, loss) -> GradientScores:
    # Gradients of an fp16 forward vanish unless the loss is scaled up; their order does not depend on the scale.
    scale = FP16_LOSS_SCALE if patcher.model.get_dtype_inference() == torch.float16 else 1.0
    return GradientScores(attached, lambda: scale * loss(), patcher.load_device)


def _report(store: Store, selection: Selection, untrained: dict[str, int]) -> None:
    written = sum(base is not None for base in store.base)
    below = "" if selection.theta is None else f", |w| up to {selection.theta:.3g}"
    others = ", ".join(f"{count:,} of {kind}" for kind, count in untrained.items()) or "none"
    logging.info(
        f"SaRA: training {selection.count:,} of {selection.candidates:,} elements ({selection.density:.3%}){below}, "
        f"in {len(store.support)} weights, {written} of them written in place. Left out: {others}"
    )


def _resident_patcher(model, kind: str = "MODEL"):
    """A patcher whose weights this process may write: dynamic ones map theirs read-only from the file."""
    is_dynamic = getattr(model, "is_dynamic", lambda: False)
    if not is_dynamic():
        return model
    if getattr(model, "cached_patcher_init", None) is None:
        raise UnsupportedModelError(
            f"This {kind} is streamed from its file (dynamic VRAM) and was changed by a node in a way that cannot be "
            "loaded again. Connect the loader directly, or start ComfyUI with --disable-dynamic-vram."
        )
    return model.clone(disable_dynamic=True)


def _resident_encoders(clip):
    return _resident_patcher(with_added_weights(clip.patcher), "CLIP")


def _can_be_written(holder, device) -> bool:
    # Biases, norms and the like are small, and are replaced by copies for the time of training anyway.
    return not isinstance(holder, ParameterOf) and can_be_written(holder, device)


def _mark_training(undo: ExitStack):
    """Model code that would compute with kernels for inference only asks the host for this flag."""
    management = comfy.model_management
    if hasattr(management, "in_training"):
        undo.callback(setattr, management, "in_training", management.in_training)
        management.in_training = True


def _replace_inference_tensors(undo: ExitStack, parts: Sequence[Part]):
    """Autograd cannot save tensors made in inference mode, as the host's all are. Attached layers never save their
    weights; norms, embeddings and buffers, which are small, are replaced by copies for the time of training.

    The copies lie on the device that computes: what is streamed there the host may hand out in a buffer of its own,
    which it fills again for the next layer, before the backward has read what autograd has saved of it.
    """
    for part in parts:
        device = part.patcher.load_device
        for tensors, name, tensor in _inference_tensors(part):
            undo.callback(tensors.__setitem__, name, tensor)
            plain = ordinary(tensor.detach())
            copy = plain.clone() if plain.device == device else plain.to(device)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            tensors[name] = torch.nn.Parameter(copy, requires_grad=False) if is_parameter else copy


def _inference_tensors(part: Part) -> Iterator[tuple[dict, str, torch.Tensor]]:
    """(the tensors of a module, the name of one of them, it). Embeddings of text encoders are not among them: they are
    large, and nothing but looked up, which saves none."""
    for module in part.module.modules():
        if is_attached(module) or (isinstance(module, torch.nn.Embedding) and part.name != DIFFUSION_MODEL):
            continue
        for tensors in (module._parameters, module._buffers):
            for name, tensor in list(tensors.items()):
                if tensor is not None and tensor.is_inference():
                    yield tensors, name, tensor
