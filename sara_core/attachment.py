"""From a plain PyTorch model to attached layers: which weights can be trained, and putting sparse backward on them."""

from collections.abc import Iterable

import torch
from torch.nn.parameter import is_lazy

from .backprop import AddedCopy, InPlace, attach, detach, is_attached
from .delta import check_precision
from .errors import UnsupportedModelError
from .layers import CONVOLUTIONS, layer_op
from .selection import name_is_included
from .store import Store


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
    model: torch.nn.Module, include: Iterable[str] = (), exclude: Iterable[str] = ()
) -> dict[str, torch.nn.Module]:
    """Weights of Linear and Conv layers as parameter name → a layer that holds it, patterns applied, tied ones once.

    Raises UnsupportedModelError for compiled models, and by name for weights that cannot be trained: in a quantised
    dtype, not in memory, computed anew in each forward, shared with something that is no such layer, or already being
    trained.
    """
    if any(hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) for part in model.modules()):
        raise UnsupportedModelError("This model is compiled (torch.compile): train the original, compile afterwards.")
    weights, seen = {}, set()
    candidates = plain_layers(model)
    for module_name, module in candidates.items():
        if is_attached(module):
            raise UnsupportedModelError("Another SaRA optimizer is training this model: detach() that one first.")
        name = f"{module_name}.weight" if module_name else "weight"
        if not name_is_included(name, include, exclude):
            continue
        if "weight" not in module._parameters:
            raise UnsupportedModelError(
                f"'{name}' is computed anew in each forward (weight_norm, spectral_norm or another parametrization): "
                "remove that from the layer, or leave it out with an exclude pattern."
            )
        if is_lazy(module.weight) or module.weight.is_meta:
            raise UnsupportedModelError(f"'{name}' is not in memory yet: load the model's weights first.")
        if id(module.weight) not in seen:
            check_precision(name, module.weight)
            seen.add(id(module.weight))
            weights[name] = module
    _check_holders(model, candidates, seen)
    return weights


def _check_holders(model, candidates, trained: set[int]) -> None:
    """A gradient that reaches a trained weight through anything but an attached layer would be lost."""
    attachable = {id(module) for module in candidates.values()}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if id(parameter) in trained and id(module) not in attachable:
                raise UnsupportedModelError(
                    f"'{name}.{key}' is shared with a Linear or Conv layer, but is no such layer itself: "
                    "leave the shared weight out with an exclude pattern."
                )


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
    for module in plain_layers(model).values():
        number = number_of.get(id(module.weight))
        added = copy_weights and number is not None
        attach(module, store, number, AddedCopy(store, number) if added else InPlace(), route)


def detach_model(model: torch.nn.Module) -> None:
    """Undo `attach_model`."""
    for module in list(model.modules()):
        if is_attached(module):
            detach(module)
