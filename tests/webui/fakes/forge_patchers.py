"""What Forge and its kin do to weights, written anew by their rules: who keeps which copies.

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
            for strength, value, *_ in given:
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
        taken = {name for name, _ in self.model.named_parameters()} & patches.keys()
        self.lora_patches[filename, strength_patch, strength_model, online_mode] = {
            name: [[strength_patch, patches[name], strength_model, None, None]] for name in taken
        }
        return taken

    def load(self):
        self.lora_loader.refresh(self.lora_patches)

    def unload(self):
        """The merged weights stay merged."""


class ReForgePatcher(NeoPatcher):
    """As Neo's, but that its patches have no names, and that it merges in fp32."""

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        return super().add_patches(patches, strength_patch, strength_model)


class ClassicPatcher(_Patcher):
    """Keeps copies by itself, those of the patcher that is loaded; knows only the names that its model had at first."""

    def __init__(self, model, rules):
        super().__init__(model, rules)
        self.patches, self.backup = {}, {}
        self.model_keys = {name.replace(".wrapped", "") for name in model.state_dict()}

    def take_from(self, other):
        self.patches = {name: given[:] for name, given in other.patches.items()}
        self.model_keys = other.model_keys

    def is_clone(self, other):
        return self.model is other.model

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        taken = self.model_keys & patches.keys()
        for name in taken:
            self.patches.setdefault(name, []).append((strength_patch, patches[name], strength_model))
        return list(taken)

    @torch.inference_mode()
    def load(self):
        loaded = self.rules.loaded
        if any(one.model is self for one in loaded):
            return
        for one in [one for one in loaded if one.model.is_clone(self)]:
            loaded.remove(one)
            one.model_unload()
        present = self.model.state_dict()
        for name, given in self.patches.items():
            if name in present:
                weight = self.model.get_parameter(name)
                self.backup[name] = weight
                _set(self.model, name, self._merged(given, weight.to(torch.float32, copy=True)).to(weight.dtype))
        loaded.append(_Loaded(self))

    def unpatch_model(self, device_to=None):
        for name, kept in self.backup.items():
            _set(self.model, name, kept)
        self.backup = {}

    def unload(self):
        for one in [one for one in self.rules.loaded if one.model.is_clone(self)]:
            self.rules.loaded.remove(one)
            one.model_unload()

    def _merged(self, given, weight):
        for strength, value, _ in given:
            if value[0] == "lora":
                weight += _lora_change(value[1], strength)
            else:
                weight = CALCULATORS[value[0]](weight, strength, value[1])
        return weight


class _Loaded:
    def __init__(self, model):
        self.model = model

    def model_unload(self):
        self.model.unpatch_model()


def _backend_modules(webui, **lora):
    """Of those that have a package of this name. lora: what is in the module of their patches"""
    memory = module("backend.memory_management", unload_all_models=webui.unload_all_models)
    return [module("backend"), memory, module("backend.patcher"), module("backend.args", dynamic_args={}),
            module("backend.patcher.lora", **lora)]  # fmt: skip


def _older_modules(loaded, **patcher):
    """Of those that have the first Forge's. loaded: what is in memory; patcher: what is in the module of patchers"""
    memory = module("ldm_patched.modules.model_management", current_loaded_models=loaded)
    return [module("ldm_patched"), module("ldm_patched.modules"), memory,
            module("ldm_patched.modules.model_patcher", **patcher)]  # fmt: skip


class _Rules:
    """widens_embeddings: whether it encodes with them in fp32; can_list_some: whether the extension for LoRAs can look
    for files of some names only; loads_with_dims: whether it is given dimensions"""

    widens_embeddings, can_list_some, loads_with_dims = True, True, False

    def add_lora(self, part, filename, patches, strength):
        part.add_patches(filename=filename, patches=patches, strength_patch=strength, online_mode=False)


class _OlderRules(_Rules):
    widens_embeddings, loads_with_dims = False, True

    def add_lora(self, part, filename, patches, strength):
        part.add_patches(patches, strength)


class Neo(_Rules):
    """Forge Neo. compute_dtype: in which it merges, fp16 on many GPUs"""

    name, patcher = "Forge Neo", NeoPatcher

    def __init__(self, compute_dtype=torch.float32):
        self.compute_dtype = compute_dtype

    def modules(self, webui):
        adapters = module("weight_adapter", WeightAdapterBase=_WeightAdapterBase)
        return _backend_modules(webui, extra_weight_calculators={}, weight_adapter=adapters)


class Forge(_Rules):
    """lllyasviel's Forge."""

    name, patcher, loads_with_dims = "Forge", ForgePatcher, True

    def modules(self, webui):
        return _backend_modules(webui, extra_weight_calculators=CALCULATORS)


class ReForge(_OlderRules):
    """Panchovix's reForge. What the host keeps as loaded is kept by the models themselves here."""

    name, patcher, compute_dtype = "reForge", ReForgePatcher, torch.float32

    def modules(self, webui):
        adapters = module("ldm_patched.modules.weight_adapter", WeightAdapterBase=_WeightAdapterBase)
        return [*_older_modules(_LoadedOf(webui), extra_weight_calculators={}), adapters]


class _LoadedOf:
    """What is loaded of the one model of a WebUI, to be unloaded as from a list."""

    def __init__(self, webui):
        self._webui = webui

    def __bool__(self):
        both = self._webui.both_patchers()
        return any(patcher.model.current_weight_patches_uuid is not None for patcher in both)

    def pop(self):
        both = self._webui.both_patchers()
        return _Loaded(next(one for one in both if one.model.current_weight_patches_uuid is not None))


class Classic(_OlderRules):
    """Haoming02's Forge classic."""

    name, patcher, can_list_some = "Forge classic", ClassicPatcher, False

    def __init__(self):
        self.loaded = []

    def modules(self, webui):
        return _older_modules(self.loaded, extra_weight_calculators=CALCULATORS)
