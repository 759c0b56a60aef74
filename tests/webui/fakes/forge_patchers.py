"""What Forge and Forge Neo do to weights, written anew by their rules: who keeps which copies.

All weights are inference tensors. A patcher is cloned, its clone is given patches, and a model is brought to the
patches of the patcher that it is loaded for, when it is about to compute.
"""

import itertools
from collections import namedtuple

import torch
from torch import nn

from .stand_ins import module

_Kept = namedtuple("_Kept", ["weight", "inplace_update"])
_numbers = itertools.count()


class _WeightAdapterBase:
    pass


def _lora_change(factors, strength):
    up, down = factors
    return strength * (up.float() @ down.float())


@torch.inference_mode()
def _set(model, name, tensor):
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, nn.Parameter(tensor, requires_grad=False))


class _Patcher:
    """model: with parameters; load: the module that `calculators` of extensions are in, or their base class"""

    def __init__(self, model, rules):
        self.model, self.rules, self.offload_device = model, rules, torch.device("cpu")

    def clone(self):
        other = type(self)(self.model, self.rules)
        other.take_from(self)
        return other


class NeoPatcher(_Patcher):
    """Keeps copies in a dictionary that clones share; whose patches are on the model is told by a mark of its own."""

    def __init__(self, model, rules):
        super().__init__(model, rules)
        self.patches, self.backup, self.patches_uuid = {}, {}, next(_numbers)
        if not hasattr(model, "current_weight_patches_uuid"):
            model.current_weight_patches_uuid = None

    def take_from(self, other):
        self.patches = {name: given[:] for name, given in other.patches.items()}
        self.backup, self.patches_uuid = other.backup, other.patches_uuid

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0, *, filename=None, online_mode=None):
        taken = self.model.state_dict().keys() & patches.keys()
        for name in taken:
            self.patches.setdefault(name, []).append((strength_patch, patches[name], strength_model, online_mode))
        self.patches_uuid = next(_numbers)
        return list(taken)

    def load(self):
        if self.model.current_weight_patches_uuid == self.patches_uuid:
            return
        self.unpatch_model()
        with torch.inference_mode():
            for name, given in self.patches.items():
                weight = self.model.get_parameter(name)
                self.backup[name] = _Kept(weight, False)
                merged = self._merged(given, weight.to(self.rules.compute_dtype, copy=True), name)
                _set(self.model, name, merged.to(weight.dtype))
        self.model.current_weight_patches_uuid = self.patches_uuid

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        for name, kept in self.backup.items():
            _set(self.model, name, kept.weight)
        self.backup.clear()
        self.model.current_weight_patches_uuid = None

    unload = unpatch_model

    def _merged(self, given, weight, name):
        for strength, value, strength_model, _ in given:
            if isinstance(value, _WeightAdapterBase):
                weight = value.calculate_weight(weight, name, strength, strength_model, None, None, torch.float32)
            else:
                weight += _lora_change(value[1], strength).to(weight.dtype)
        return weight


class _LoraLoader:
    def __init__(self, model):
        self.model, self.backup, self.loaded_hash = model, {}, str([])

    @torch.inference_mode()
    def refresh(self, lora_patches, offload_device=torch.device("cpu"), force_refresh=False):
        hashes = str(list(lora_patches.keys()))
        if hashes == self.loaded_hash:
            return
        together = {}
        for patches in lora_patches.values():
            for name, given in patches.items():
                together[name] = together.get(name, []) + given
        for name, kept in self.backup.items():
            _set(self.model, name, kept)
        self.backup = {}
        for name, given in together.items():
            self.backup[name] = weight = self.model.get_parameter(name)
            merged = weight.float() if weight.dtype != torch.float32 else weight.clone()
            for strength, value in given:
                if value[0] == "lora":
                    merged += _lora_change(value[1], strength)
                else:
                    merged = CALCULATORS[value[0]](merged, strength, value[1])
            _set(self.model, name, merged.to(weight.dtype))
        self.loaded_hash = hashes


CALCULATORS = {}


class ForgePatcher(_Patcher):
    """Whose patches are on the model is told by the names and strengths of what was given, not by its content."""

    def __init__(self, model, rules):
        super().__init__(model, rules)
        self.lora_patches = {}
        if not hasattr(model, "lora_loader"):
            model.lora_loader = _LoraLoader(model)
        self.lora_loader = model.lora_loader

    def take_from(self, other):
        self.lora_patches = other.lora_patches.copy()

    def add_patches(self, *, filename, patches, strength_patch=1.0, strength_model=1.0, online_mode=False):
        taken = self.model.state_dict().keys() & patches.keys()
        self.lora_patches[filename, strength_patch, strength_model, online_mode] = {
            name: [(strength_patch, patches[name])] for name in taken
        }
        return taken

    def load(self):
        self.lora_loader.refresh(self.lora_patches)

    def unload(self):
        """The merged weights stay merged."""


class Neo:
    """Forge Neo. compute_dtype: in which it merges, fp16 on many GPUs"""

    name, patcher = "Forge Neo", NeoPatcher

    def __init__(self, compute_dtype=torch.float32):
        self.compute_dtype = compute_dtype

    def patcher_module(self):
        return module("backend.patcher.lora", extra_weight_calculators={},
                      weight_adapter=module("weight_adapter", WeightAdapterBase=_WeightAdapterBase))  # fmt: skip


class Forge:
    """lllyasviel's Forge."""

    name, patcher = "Forge", ForgePatcher

    def patcher_module(self):
        return module("backend.patcher.lora", extra_weight_calculators=CALCULATORS)
