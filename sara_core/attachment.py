"""From a plain PyTorch model to attached layers: which weights can be trained, and putting sparse backward on them."""

from collections.abc import Iterable

import torch

from .backprop import AddedCopy, InPlace, attach, detach, is_attached
from .delta import check_precision
from .errors import UnsupportedModelError
from .layers import layer_op
from .selection import name_is_included
from .store import Store


def layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Every Linear and Conv layer under its name; a layer reachable by two names appears under the first."""
    return {name: module for name, module in model.named_modules() if layer_op(module) is not None}


def trainable_weights(
    model: torch.nn.Module, include: Iterable[str] = (), exclude: Iterable[str] = ()
) -> dict[str, torch.nn.Module]:
    """Weights of Linear and Conv layers as parameter name → a layer that holds it, patterns applied, tied ones once.

    Raises UnsupportedModelError for compiled models, weights that are already being trained, and weights in a dtype
    that cannot be trained.
    """
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise UnsupportedModelError("This model is compiled (torch.compile): train the original, and compile afterwards.")
    weights, seen = {}, set()
    for module_name, module in layers(model).items():
        if is_attached(module):
            raise UnsupportedModelError("This model is being trained by another SaRA optimizer: detach() that one first.")
        name = f"{module_name}.weight" if module_name else "weight"
        if id(module.weight) in seen or not name_is_included(name, include, exclude):
            continue
        check_precision(name, module.weight)
        seen.add(id(module.weight))
        weights[name] = module
    return weights


def attach_model(
    model: torch.nn.Module,
    store: Store,
    weights: dict[str, torch.nn.Module],
    route: str = "auto",
    copy_weights: bool = False,
) -> None:
    """Attach every Linear and Conv layer of `model`: those whose weight has a segment train it, the others freeze.

    copy_weights: add Δ to a copy of each weight in each forward and backward instead of writing the weight in place
    """
    number_of = {}
    for number, segment in enumerate(store.support):
        layer = weights[segment.name]
        number_of[id(layer.weight)] = number
        store.bind(number, layer, in_place=not copy_weights)
    for module in layers(model).values():
        number = number_of.get(id(module.weight))
        added = copy_weights and number is not None
        attach(module, store, number, AddedCopy(store, number) if added else InPlace(), route)


def detach_model(model: torch.nn.Module) -> None:
    """Undo `attach_model`."""
    for module in list(model.modules()):
        if is_attached(module):
            detach(module)
