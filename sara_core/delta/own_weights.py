"""Which tensors of a module are its own weights, and what they are called, whatever was put around or beside them.

PEFT puts a layer that it adapts into another one, beside the adapter's factors; torch.compile puts a module into
another one; diffusers computes with copies (fused.py) and takes weights out of memory. A delta is of the weights under
the names that they have without all this. Nothing here imports these libraries: their modules are told by what they
have.
"""

import weakref
from collections.abc import Iterable, Mapping

import torch

from ..errors import UnsupportedModelError
from .entry import SparseEntry
from .fused import computes_fused, entries_of_copies, fused_copies

# What all of PEFT's classes have that are put around a layer, and the child that is the layer: one that takes part in
# what they compute, or one in whose place an active adapter computes.
_ADAPTS, _ADAPTED, _REPLACED = "adapter_layer_names", "base_layer", "original_module"
_PEFT_MODEL = "base_model.model."
# What torch puts a module into that it compiles, or whose activations it computes anew.
_WRAPPED = {"_orig_mod", "_checkpoint_wrapped_module"}


def _prefix(model: torch.nn.Module) -> str:
    """What the names of a model within another one, which only calls it, begin with."""
    if isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        return "module."
    return _PEFT_MODEL if hasattr(type(model), "get_base_model") else ""


class OwnWeights:
    """The own weights of a module as it is now; what is put around them later is not known.

    tensors: name → tensor, of all own parameters and buffers
    copies: name → tensor, of what diffusers has fused of them
    """

    def __init__(self, model: torch.nn.Module):
        self._model = weakref.ref(model)  # a handle of a delta must not keep a model alive
        self._prefix = _prefix(model)
        self._layer_of: dict[str, str] = {}  # path of what PEFT put around a layer → its child that is the layer
        self._adapter_of: dict[str, str] = {}  # path of a layer that does not compute → the adapter that does
        self._fused = fused_copies(model)
        for path, module in model.named_modules():
            if hasattr(type(module), _ADAPTS):
                self._layer_of[path] = _ADAPTED if _ADAPTED in module._modules else _REPLACED
                if _REPLACED in module._modules and not module.disable_adapters and module.active_adapters:
                    self._adapter_of[path] = module.active_adapters[0]
        everything = _state(model)
        self.tensors = {name: tensor for path, tensor in everything.items() if (name := self.name(path)) is not None}
        self.copies = {
            path: tensor for path, tensor in everything.items() if path.rpartition(".")[0] in self._fused
        }

    def name(self, path: str) -> str | None:
        """What the module, parameter or buffer at a path is called without what was put around it; None for one that
        was put there, or is a copy."""
        if not path.startswith(self._prefix):
            return None
        own, parent = [], ""
        for word in path.split("."):
            layer = self._layer_of.get(parent)
            if parent in self._fused or layer not in (None, word):
                return None
            if layer is None and word not in _WRAPPED:
                own.append(word)
            parent = f"{parent}.{word}" if parent else word
        return ".".join(own).removeprefix(self._prefix)

    def entries_of_copies(self, entries: Mapping[str, SparseEntry]) -> dict[str, SparseEntry]:
        """The changes that `copies` need, by their names, if own weights are changed by `entries`."""
        return entries_of_copies(self._fused, self.name, entries, self.tensors)

    def replaced(self, name: str) -> str | None:
        """The adapter that has put a layer of its own in the place of the one that a weight belongs to, if any."""
        for path, adapter in self._adapter_of.items():
            if name.startswith(f"{self.name(path)}."):
                return adapter
        return None

    def check_effective(self, names: Iterable[str]) -> None:
        """Raise UnsupportedModelError, naming it, if one of the weights has no part in what the model computes, or is
        not in memory."""
        for name in names:
            if (adapter := self.replaced(name)) is not None:
                raise UnsupportedModelError(
                    f"The adapter '{adapter}' has put a layer of its own in the place of that of '{name}' "
                    "(modules_to_save), so a change of it has no effect: load the model without the adapter, switch "
                    "its layer off (enable_adapters(False) of that layer), or leave that weight out."
                )
        self._check_in_memory()

    def check_same(self) -> None:
        """Raise UnsupportedModelError if the module has other copies of its weights by now, or none of the weights in
        memory."""
        model = self._model()
        if model is None:
            return
        if computes_fused(model):
            now = OwnWeights(model).copies
            if any(tensor is not self.copies.get(name) for name, tensor in now.items()):
                raise UnsupportedModelError(
                    "Attention weights of this model were fused (fuse_qkv_projections) while it had the delta: call "
                    "unfuse_qkv_projections() first, and fuse them again afterwards."
                )
        self._check_in_memory()

    def _check_in_memory(self) -> None:
        model = self._model()
        if model is not None and any(map(_is_kept_on_disk, model.modules())):
            raise UnsupportedModelError(
                "The weights of this model are kept on the disk (group offloading with offload_to_disk_path), and what "
                "is in memory is empty: do this before offloading, and offload to an empty folder."
            )


def _state(model) -> dict[str, torch.Tensor]:
    """The state dict, with the parameters that it has in parts only (quanto's) as they are in memory."""
    state = model.state_dict(keep_vars=True)
    in_parts = {name.rpartition(".")[0] for name in state} - state.keys()
    parameters = model.named_parameters(remove_duplicate=False) if in_parts else ()
    return {**state, **{name: parameter for name, parameter in parameters if name in in_parts}}


def _is_kept_on_disk(module) -> bool:
    hooks = getattr(module.__dict__.get("_diffusers_hook"), "hooks", {})
    return any(getattr(getattr(hook, "group", None), "offload_to_disk_path", None) for hook in hooks.values())
