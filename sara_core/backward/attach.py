"""From a model to attached layers: which of its parameters can be trained, and putting sparse backward on them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.nn.parameter import is_lazy

from .layer import AddedCopy, InPlace, attach, detach, is_attached, is_changed
from ..delta.delta import check_precision
from ..errors import UnsupportedModelError
from .ops import CONVOLUTIONS, layer_op
from .parameters import ParameterOf, identity, train_parameter
from ..names.patterns import ALL_LAYERS, KINDS, LAYER_WEIGHT, Choice, NamedParameter
from .store import Store
from .streaming import Streamed, move_all_but, move_back

IN_PLACE, COPIED, STREAMED = REACHES = ("in place", "copied", "streamed")
_PLAIN_FORWARDS = {torch.nn.Linear.forward, *(convolution.forward for convolution in CONVOLUTIONS)}


def layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Every Linear and Conv layer under its name; a layer reachable by two names appears under the first."""
    return {name: module for name, module in model.named_modules() if layer_op(module) is not None}


def plain_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The layers that compute what torch's own classes do; a subclass with a forward of its own is left alone."""
    return {
        name: module
        for name, module in layers(model).items()
        if is_attached(module) or type(module).forward in _PLAIN_FORWARDS
    }


def trainable_weights(
    model: torch.nn.Module,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    preset: str = ALL_LAYERS,
    *,
    find_layers: Callable[[torch.nn.Module], Mapping[str, torch.nn.Module]] = plain_layers,
    prefix: str = "",
) -> dict[str, torch.nn.Module | ParameterOf]:
    """What the patterns and the preset (names/patterns.py) let be trained, as parameter name → something whose
    `.weight` it is: a layer that holds it, or a ParameterOf. A tied parameter appears once, under its first name.

    find_layers: the layers of the model that can be attached
    prefix: what the host calls the model: "diffusion_model" makes "diffusion_model.out.2.weight"

    Raises UnsupportedModelError for compiled models, and by name for parameters that cannot be trained: in a quantised
    dtype, not in memory, computed anew in each forward, overlapping another one, or already being trained.
    Raises SelectionError for patterns and presets that match nothing.
    """
    if any(hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) for part in model.modules()):
        raise UnsupportedModelError("This model is compiled (torch.compile): train the original, compile afterwards.")
    if any(map(is_changed, model.modules())):
        raise UnsupportedModelError(
            "This model is already being trained: wait until that has ended, or detach() the SaRA optimizer that does "
            "it."
        )
    choice = Choice(include, exclude, preset)
    attachable = find_layers(model)
    places = _places(model, attachable, prefix)
    choice.check(place.parameter for held in places.values() for place in held)
    _refuse_computed(attachable, choice, prefix)
    weights = {}
    for held in places.values():
        if choice.takes(place.parameter for place in held):
            place = _first(held)
            name, tensor = place.parameter.name, place.location.weight
            if is_lazy(tensor) or tensor.is_meta:
                raise UnsupportedModelError(f"'{name}' is not in memory yet: load the model's weights first.")
            check_precision(name, tensor)
            weights[name] = place.location
    _refuse_overlapping(model, weights, prefix)
    return weights


def left_out(
    model: torch.nn.Module, weights: Mapping[str, torch.nn.Module | ParameterOf], find_layers=plain_layers
) -> dict[str, int]:
    """How many elements of biases, norms, embeddings and other parameters are not trained, under what a report calls
    these kinds. weights: as from `trainable_weights`"""
    trained = {identity(location.weight) for location in weights.values()}
    elements = dict.fromkeys(KINDS.values(), 0)
    for key, held in _places(model, find_layers(model), "").items():
        first = _first(held)
        if key not in trained and first.parameter.kind != LAYER_WEIGHT:
            elements[KINDS[first.parameter.kind]] += first.location.weight.numel()
    return {kind: count for kind, count in elements.items() if count}


class _Place(NamedTuple):
    """Where a parameter is, and what it is called there."""

    parameter: NamedParameter
    location: torch.nn.Module | ParameterOf


def _places(model, attachable: Mapping[str, torch.nn.Module], prefix: str) -> dict[tuple, list[_Place]]:
    """Every parameter, by its identity, with all the places it is in."""
    layer_ids = {id(layer) for layer in attachable.values()}
    places = defaultdict(list)
    for path, module in model.named_modules(prefix=prefix, remove_duplicate=False):
        for key, tensor in module._parameters.items():
            if tensor is not None:
                places[identity(tensor)].append(_place(path, module, key, id(module) in layer_ids))
    return places


def _place(path: str, module, key: str, is_layer: bool) -> _Place:
    name = f"{path}.{key}" if path else key
    if is_layer and key == "weight":
        return _Place(NamedParameter(name, LAYER_WEIGHT, 0), module)
    if "norm" in type(module).__name__.lower():
        kind = "norm"
    elif isinstance(module, torch.nn.Embedding):
        kind = "embedding"
    else:
        kind = "bias" if key.endswith("bias") else "parameter"
    is_container = any(True for _ in module.children())
    own_part = len(name) - len(key) if is_layer or is_container else path.rfind(".") + 1
    return _Place(NamedParameter(name, kind, own_part), ParameterOf(module, key))


def _first(held: list[_Place]) -> _Place:
    """The place that gives a parameter its name: that of a layer, if it is the weight of one."""
    return next((place for place in held if place.parameter.kind == LAYER_WEIGHT), held[0])


def _refuse_computed(attachable, choice, prefix) -> None:
    for path, layer in attachable.items():
        name = ".".join(part for part in (prefix, path, "weight") if part)
        if "weight" not in layer._parameters and choice.takes([NamedParameter(name, LAYER_WEIGHT, 0)]):
            raise UnsupportedModelError(
                f"'{name}' is computed anew in each forward (weight_norm, spectral_norm or another parametrization): "
                "remove that from the layer, or leave it out with an exclude pattern."
            )


def _refuse_overlapping(model, weights, prefix) -> None:
    """What is trained in one place must not change, without its gradient being known, in another."""
    trained = {identity(location.weight) for location in weights.values()}
    spans = []
    for name, tensor in model.named_parameters(prefix=prefix):
        if len(key := identity(tensor)) > 1:
            spans.append((*_memory_span(tensor), key, name))
    spans.sort(key=lambda span: span[0])
    furthest = None
    for begin, end, key, name in spans:
        if furthest is not None and begin < furthest[0] and key != furthest[1] and trained & {key, furthest[1]}:
            raise UnsupportedModelError(
                f"'{name}' and '{furthest[2]}' overlap in memory without being the same: leave both out with exclude "
                "patterns, or give each its own memory."
            )
        if furthest is None or end > furthest[0]:
            furthest = (end, key, name)


def _memory_span(tensor) -> tuple[int, int]:
    """Addresses of the first byte and after the last."""
    elements = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr(), tensor.data_ptr() + elements * tensor.element_size()


def attach_model(
    model: torch.nn.Module,
    store: Store,
    weights: Mapping[str, torch.nn.Module | ParameterOf],
    route: str = "auto",
    reach: str = IN_PLACE,
) -> None:
    """Attach every Linear and Conv layer of `model`: those whose weight has a segment train it, the others freeze.
    Other parameters with a segment are replaced where they are read.

    weights: as from `trainable_weights`
    reach: one of REACHES. IN_PLACE writes Δ into the weights; COPIED adds it to a copy of a weight in each forward and
        backward; STREAMED does so with a copy on the device of the layer's input (streaming.py)
    """
    if reach == STREAMED:
        access = Streamed
    else:
        def access(added):
            return InPlace() if added is None else added
    attach_layers(
        model, plain_layers(model), store, weights, route,
        is_written=lambda location: reach == IN_PLACE, access=access,
    )  # fmt: skip


def attach_layers(
    model: torch.nn.Module,
    attachable: Mapping[str, torch.nn.Module],
    store: Store,
    weights: Mapping[str, torch.nn.Module | ParameterOf],
    route: str,
    is_written: Callable[[torch.nn.Module | ParameterOf], bool],
    access: Callable[[AddedCopy | None], object],
) -> None:
    """As `attach_model`, for any way of reaching weights.

    attachable: the layers to attach; is_written: whether Δ is written into a weight or added to copies of it
    access: of a layer, for what adds Δ to its weight, or None where Δ is in it or it is not trained
    """
    number_of = {}
    for number, segment in enumerate(store.support):
        location = weights[segment.name]
        number_of[identity(location.weight)] = number
        store.bind(number, location, is_written(location))
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
            attach(module, store, number, access(AddedCopy(store, number) if added else None), route)
        for key, number in segments.items():
            train_parameter(module, key, store, number)


def detach_model(model: torch.nn.Module) -> None:
    """Undo `attach_model`."""
    for module in list(model.modules()):
        if is_changed(module):
            detach(module)


@contextmanager
def attached_for_gradients(
    model: torch.nn.Module, store: Store, weights, route: str = "auto", reach: str = IN_PLACE
) -> Iterator[None]:
    """Inside, a backward leaves gradients in `store` and nowhere else; afterwards the model is as it was before."""
    device = store.values.device
    moved = move_all_but(model, plain_layers(model).values(), device) if reach == STREAMED else []
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # norms in training mode change theirs
    try:
        attach_model(model, store, weights, route, reach)
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
    for parameter in parameters:
        with torch.inference_mode(parameter.is_inference()):
            parameter.requires_grad_(True)
