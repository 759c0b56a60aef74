"""Which parameters of a model can be trained, and which of those the patterns let be trained."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch.nn.parameter import is_lazy

from ..backward.attach import layers, plain_layers
from ..backward.layer import is_changed
from ..backward.parameters import ParameterOf, identity
from ..delta.delta import check_precision
from ..delta.fused import computes_fused
from ..delta.own_weights import OwnWeights
from ..errors import UnsupportedModelError
from ..names.patterns import ALL_LAYERS, KINDS, LAYER_WEIGHT, Choice, NamedParameter
from ..tensors.elements import memory_span


def trainable_weights(
    model: torch.nn.Module,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    preset: str = ALL_LAYERS,
    *,
    find_layers: Callable[[torch.nn.Module], Mapping[str, torch.nn.Module]] = plain_layers,
    check_weight: Callable[[str, torch.Tensor], None] = check_precision,
) -> dict[str, torch.nn.Module | ParameterOf]:
    """What the patterns and the preset (names/patterns.py) let be trained, as parameter name → something whose
    `.weight` it is: a layer that holds it, or a ParameterOf. A tied parameter appears once, under its first name.
    Parameters of adapters are none of the model's, and names are those without adapters (delta/own_weights.py).

    find_layers: the layers of the model that can be attached
    check_weight: (name, weight) → raises UnsupportedModelError for a weight that cannot be trained as it is stored; a
        host that can compute with quantised ones lets them pass

    Raises UnsupportedModelError for compiled models, and by name for parameters that cannot be trained: in a quantised
    dtype, not in memory, computed anew in each forward, without a part in what the model computes, overlapping another
    one, or already being trained.
    Raises SelectionError for patterns and presets that match nothing.
    """
    if any(hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) for part in model.modules()):
        raise UnsupportedModelError("This model is compiled (torch.compile): train the original, compile afterwards.")
    if any(map(is_changed, model.modules())):
        raise UnsupportedModelError(
            "This model is already being trained: wait until that has ended, or detach() the SaRA optimizer that does "
            "it."
        )
    if computes_fused(model):
        raise UnsupportedModelError(
            "Attention weights of this model are fused (fuse_qkv_projections): call unfuse_qkv_projections() before "
            "training, and fuse them again afterwards."
        )
    choice = Choice(include, exclude, preset)
    attachable, own = find_layers(model), OwnWeights(model)
    occurrences = _occurrences(model, own, attachable)
    choice.check(occurrence.parameter for held in occurrences.values() for occurrence in held)
    _refuse_computed(own, attachable, choice)
    _refuse_quantised(own, layers(model), attachable, choice, check_weight)
    weights = {}
    for held in occurrences.values():
        if choice.takes(occurrence.parameter for occurrence in held):
            occurrence = _first(held)
            name, tensor = occurrence.parameter.name, occurrence.holder.weight
            if is_lazy(tensor) or tensor.is_meta:
                raise UnsupportedModelError(
                    f"'{name}' is not in memory yet: load the model's weights first, without offloading."
                )
            check_weight(name, tensor)
            weights[name] = occurrence.holder
    own.check_effective(weights)
    _refuse_overlapping(model, weights)
    return weights


def left_out(
    model: torch.nn.Module,
    weights: Mapping[str, torch.nn.Module | ParameterOf],
    find_layers: Callable[[torch.nn.Module], Mapping[str, torch.nn.Module]] = plain_layers,
) -> dict[str, int]:
    """How many elements of biases, norms, embeddings and other parameters are not trained, under what a report calls
    these kinds; kinds of which all are trained are absent.

    weights, find_layers: as from and for `trainable_weights`
    """
    trained = {identity(holder.weight) for holder in weights.values()}
    elements = dict.fromkeys(KINDS.values(), 0)
    for key, held in _occurrences(model, OwnWeights(model), find_layers(model)).items():
        first = _first(held)
        if key not in trained and first.parameter.kind != LAYER_WEIGHT:
            elements[KINDS[first.parameter.kind]] += first.holder.weight.shape.numel()
    return {kind: count for kind, count in elements.items() if count}


class _Occurrence(NamedTuple):
    """Where a parameter is, and what it is called there."""

    parameter: NamedParameter
    holder: torch.nn.Module | ParameterOf


def _occurrences(
    model, own: OwnWeights, attachable: Mapping[str, torch.nn.Module]
) -> dict[tuple, list[_Occurrence]]:
    """Every parameter of the model's own, by its identity, with everything it is found in."""
    layer_ids = {id(layer) for layer in attachable.values()}
    occurrences = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        for key, tensor in module._parameters.items():
            name = own.name(_joined(path, key))
            if tensor is not None and name is not None:
                own_path = name[:-len(key) - 1]
                occurrences[identity(tensor)].append(_occurrence(own_path, module, key, id(module) in layer_ids))
    return occurrences


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _occurrence(path: str, module, key: str, is_layer: bool) -> _Occurrence:
    name = _joined(path, key)
    if is_layer and key == "weight":
        return _Occurrence(NamedParameter(name, LAYER_WEIGHT, 0), module)
    if "norm" in type(module).__name__.lower():
        kind = "norm"
    elif isinstance(module, torch.nn.Embedding):
        kind = "embedding"
    else:
        kind = "bias" if key.endswith("bias") else "parameter"
    is_container = any(True for _ in module.children())
    own_part = len(name) - len(key) if is_layer or is_container else path.rfind(".") + 1
    return _Occurrence(NamedParameter(name, kind, own_part), ParameterOf(module, key))


def _first(held: list[_Occurrence]) -> _Occurrence:
    """The occurrence that gives a parameter its name: that of a layer, if it is the weight of one."""
    return next((occurrence for occurrence in held if occurrence.parameter.kind == LAYER_WEIGHT), held[0])


def _refuse_computed(own, attachable, choice) -> None:
    for path, layer in attachable.items():
        name = own.name(_joined(path, "weight"))
        if "weight" in layer._parameters or name is None:
            continue
        if choice.takes([NamedParameter(name, LAYER_WEIGHT, 0)]):
            raise UnsupportedModelError(
                f"'{name}' is computed anew in each forward (weight_norm, spectral_norm or another parametrization): "
                "remove that from the layer, or leave it out with an exclude pattern."
            )


def _refuse_quantised(own, every_layer, attachable, choice, check_weight) -> None:
    """Layers that compute in a way of their own because their weight is no plain tensor."""
    for path, layer in every_layer.items():
        name, weight = own.name(_joined(path, "weight")), layer._parameters.get("weight")
        if path not in attachable and name is not None and weight is not None:
            if choice.takes([NamedParameter(name, LAYER_WEIGHT, 0)]):
                check_weight(name, weight)


def _refuse_overlapping(model, weights) -> None:
    """What is trained in one place must not change, without its gradient being known, in another."""
    trained = {identity(holder.weight) for holder in weights.values()}
    spans = []
    for name, tensor in model.named_parameters():
        if len(key := identity(tensor)) > 1:
            spans.append((*memory_span(tensor), key, name))
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
