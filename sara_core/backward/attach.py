"""From a model to attached layers: which of its parameters can be trained, and putting sparse backward on them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

from ..errors import TrainingError
from .access import AddedCopy, InPlace, Streamed, WeightAccess
from .layer import attach, detach, has_lost_its_backward, is_attached, is_changed
from .ops import layer_op
from .own_forward import check_torchs_own, is_plain
from .parameters import ParameterOf, identity, train_parameter
from .store import Store, WeightHolder
from .streaming import move_all_but, move_back


def layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Every Linear and Conv layer under its name; a layer reachable by two names appears under the first."""
    return {name: module for name, module in model.named_modules() if layer_op(module) is not None}


def plain_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The layers that compute what torch's own classes do; a subclass with a forward of its own is left alone.

    Raises UnsupportedModelError where torch's own classes have another forward than at import. A host that knows what
    was done to them says itself which layers there are (`attach_layers`, trainable_weights' `find_layers`).
    """
    check_torchs_own()
    return {
        name: module
        for name, module in layers(model).items()
        if is_attached(module) or is_plain(type(module))
    }


def attach_model(
    model: torch.nn.Module,
    store: Store,
    weights: Mapping[str, torch.nn.Module | ParameterOf],
    route: str = "auto",
    streamed: bool = False,
) -> None:
    """Attach every Linear and Conv layer of `model`: those whose weight has a segment train it, the others freeze.
    Other parameters with a segment are replaced where they are read.

    weights: name of each segment of the store → what has that weight, as from `trainable_weights`
    route: one of weight_gradient.ROUTES
    streamed: leave the weights alone, and add Δ to a copy of one on the device of the layer's input, in each forward
        and backward (streaming.py); otherwise Δ is written into them
    """
    access_of = Streamed if streamed else lambda added: InPlace() if added is None else added
    attach_layers(
        model, plain_layers(model), store, weights, route, is_written=lambda holder: not streamed, access_of=access_of
    )


def attach_layers(
    model: torch.nn.Module,
    attachable: Mapping[str, torch.nn.Module],
    store: Store,
    weights: Mapping[str, torch.nn.Module | ParameterOf],
    route: str,
    is_written: Callable[[torch.nn.Module | ParameterOf], bool],
    access_of: Callable[[AddedCopy | None], WeightAccess],
    read: Callable[[torch.nn.Module | ParameterOf], WeightHolder] = lambda holder: holder,
) -> None:
    """As `attach_model`, for any way of reaching weights.

    attachable: the layers to attach; is_written: whether Δ is written into a weight or added to copies of it
    access_of: the access of a layer, for what adds Δ to its weight, or None where Δ is in it or it is not trained
    read: what base values are read from, in place of a weight that is no plain floating tensor; such a one must not be
        written

    If it raises, some layers are attached already: `detach_model` undoes that.
    """
    number_of = {}
    for number, segment in enumerate(store.support):
        holder = weights[segment.name]
        number_of[identity(holder.weight)] = number
        store.bind(number, read(holder), is_written(holder))
    layer_ids = {id(layer) for layer in attachable.values()}
    for module in list(model.modules()):
        segments = {
            key: number_of[identity(tensor)]
            for key, tensor in module._parameters.items()
            if tensor is not None and identity(tensor) in number_of
        }
        if id(module) in layer_ids:
            number = segments.pop("weight", None)
            added = number is not None and store.base[number] is None
            attach(module, store, number, access_of(AddedCopy(store, number) if added else None), route)
        for key, number in segments.items():
            train_parameter(module, key, store, number)


def detach_model(model: torch.nn.Module) -> None:
    """Undo `attach_model` and `attach_layers`, also where they ended in an error; Δ stays where it was written."""
    for module in list(model.modules()):
        if is_changed(module):
            detach(module)


def attached_layers(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """The layers that are attached, with their names."""
    return [(name, module) for name, module in model.named_modules() if is_attached(module)]


def check_attached(layers: Iterable[tuple[str, torch.nn.Module]]) -> None:
    """Raise TrainingError, naming it, if one of the `attached_layers` computes without its sparse backward since a hook
    was taken off it."""
    for name, module in layers:
        if is_attached(module) and has_lost_its_backward(module):
            raise TrainingError(
                f"The hook on '{name}' was taken off while it is being trained, and the training with it: take hooks "
                "off (offloading, casting) before SaRA is constructed, or after detach()."
            )


@contextmanager
def attached_for_gradients(
    model: torch.nn.Module,
    store: Store,
    weights: Mapping[str, torch.nn.Module | ParameterOf],
    route: str = "auto",
    streamed: bool = False,
) -> Iterator[None]:
    """Inside, a backward leaves gradients in `store` and nowhere else; afterwards the model is as it was before.

    weights, route, streamed: as for `attach_model`
    """
    device = store.values.device
    moved = move_all_but(model, plain_layers(model).values(), device) if streamed else []
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # norms in training mode change theirs
    try:
        attach_model(model, store, weights, route, streamed)
        for parameter in frozen:
            parameter.requires_grad_(False)
        yield
    finally:
        detach_model(model)
        unfreeze(frozen)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        move_back(moved)


def unfreeze(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Let parameters, inference tensors too, require gradients again."""
    for parameter in parameters:
        with torch.inference_mode(parameter.is_inference()):
            parameter.requires_grad_(True)
