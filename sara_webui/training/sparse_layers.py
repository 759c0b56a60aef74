"""Sparse backward on the UNet of a WebUI's model, for as long as it is trained.

The WebUI goes on to draw with the same UNet: whatever training changes is undone on success, on error and when it is
stopped: every weight has the bytes that it had, no class and no forward stays changed.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch

from sara_core.backward.access import InPlace
from sara_core.backward.attach import attach_layers, detach_model, layers, unfreeze
from sara_core.backward.layer import is_attached
from sara_core.backward.store import Store
from sara_core.backward.support import Support
from sara_core.errors import UnsupportedModelError
from sara_core.selection.gradient import GradientScores
from sara_core.selection.rules import RULES
from sara_core.selection.select import Selection, select
from sara_core.selection.trainable import trainable_weights
from sara_core.training.record import RunSettings
from sara_core.wording import listed

from .checkpointing import checkpointed
from .host import TrainedModel

# As in ComfyUI, whose names a delta's file has.
DIFFUSION_MODEL = "diffusion_model"
# Gradients of an fp16 forward vanish unless the loss is scaled up; which are the largest does not depend on it.
FP16_LOSS_SCALE = 2.0**12
_TORCHS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


class Trained(NamedTuple):
    """module: computes nothing, and has the UNet as `diffusion_model`; store, selection: Δ, and its elements"""

    module: torch.nn.Module
    store: Store
    selection: Selection


@contextmanager
def sparse_layers(
    model: TrainedModel, settings: RunSettings, first_loss: Callable[[], Callable[[], torch.Tensor]],
    gradient_checkpointing: bool,
) -> Iterator[Trained]:  # fmt: skip
    """Choose the elements that the settings ask for, and train them inside.

    first_loss: makes, for a rule that chooses by it, a function that computes the same loss each time

    Raises SelectionError if the selection is impossible, UnsupportedModelError if a layer is none that can be followed.
    """
    module = torch.nn.Module()
    module.add_module(DIFFUSION_MODEL, model.unet)
    weights = trainable_weights(
        module, settings.include, settings.exclude, settings.layers, find_layers=layers
    )
    check_layers(model.unet)

    @contextmanager
    def attached(store: Store) -> Iterator[None]:
        frozen = [parameter for parameter in model.unet.parameters() if parameter.requires_grad]
        with ExitStack() as undo:
            undo.callback(unfreeze, frozen)
            undo.callback(detach_model, module)
            undo.callback(store.restore)
            for parameter in frozen:
                parameter.requires_grad_(False)
            attach_layers(
                module, layers(module), store, weights, "auto", is_written=lambda holder: True,
                access_of=lambda added: InPlace() if added is None else added,
            )  # fmt: skip
            _check_all_attached(model.unet)
            if gradient_checkpointing:
                undo.enter_context(checkpointed(model.unet))
            with torch.inference_mode(False), torch.enable_grad():
                yield

    by_gradient = None
    if RULES[settings.selection["rule"]].needs_loss:
        scale, loss = FP16_LOSS_SCALE if model.is_half else 1.0, first_loss()
        by_gradient = GradientScores(attached, lambda: scale * loss(), model.device).largest
    tensors = {name: holder.weight for name, holder in weights.items()}
    selection = select(tensors, **settings.selection, by_gradient=by_gradient)
    support = Support.from_indices(selection.indices, {name: tensor.shape for name, tensor in tensors.items()})
    store = Store(support, model.device)
    with attached(store):
        yield Trained(module, store, selection.without_indices())


def check_layers(unet: torch.nn.Module) -> None:
    """Raise UnsupportedModelError for layers of a class that computes in a way of its own. What a WebUI does to the
    forward of torch's own classes, for its networks, is not looked at: networks are off, and sparse layers do not call
    it."""
    odd = {}
    for name, layer in layers(unet).items():
        own = type(layer).__mro__
        before = own[: min((own.index(kind) for kind in _TORCHS if kind in own), default=len(own))]
        if any("forward" in vars(kind) or "_conv_forward" in vars(kind) for kind in before):
            odd[name] = type(layer).__name__
    if odd:
        raise UnsupportedModelError(
            f"{len(odd)} layers of this model compute in a way of their own ({listed(set(odd.values()))}: "
            f"{listed(odd)}), which training cannot follow: switch off the extension that put them there."
        )


def _check_all_attached(unet: torch.nn.Module) -> None:
    """A weight that no sparse layer has would stay as it is without a word: 98 of 282 trained once, and all seemed
    well."""
    reached = {id(layer.weight) for layer in unet.modules() if is_attached(layer)}
    missing = [name for name, weight in unet.named_parameters() if weight.dim() > 1 and id(weight) not in reached]
    if missing:
        raise UnsupportedModelError(
            f"{len(missing)} of {len(missing) + len(reached)} layers of this model could not be prepared for training "
            f"({listed(missing)}): an extension has exchanged them. Switch it off, and restart the WebUI."
        )
