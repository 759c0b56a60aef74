"""The built-in extension for LoRAs, written anew by its rules: who is called when, by which names, what is kept.

- a layer is brought to the loaded networks in its next forward, if their names and strengths are others than last time;
- before the first network it copies the layer's weights, and restores them from there ever after;
- a file is read again when it is newer than what was read under the tag's name;
- loading a checkpoint into a layer makes it forget the copies, not what is on the weight.
"""

import os
from pathlib import Path
from unittest import mock

from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from .stand_ins import importable, module

HOOKED = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention)


class SdVersion:
    """In place of an enumeration: what is asked of one here."""

    _made = {}

    def __init__(self, name):
        self.name = name

    def __class_getitem__(cls, name):
        return cls._made.setdefault(name, cls(name))


SdVersion.Unknown, SdVersion.SD1, SdVersion.SDXL = (SdVersion[name] for name in ("Unknown", "SD1", "SDXL"))


class NetworkOnDisk:
    def __init__(self, name, filename):
        self.name, self.filename = name, filename
        with safe_open(filename, "pt") as file:
            self.metadata = file.metadata() or {}
        self.alias = self.metadata.get("ss_output_name", name)
        self.shorthash = ""
        self.sd_version = self.detect_version()

    def detect_version(self):
        if str(self.metadata.get("ss_base_model_version", "")).startswith("sdxl_"):
            return SdVersion.SDXL
        return SdVersion.SD1 if self.metadata else SdVersion.Unknown


class _Network:
    def __init__(self, name, on_disk, modules):
        self.name, self.network_on_disk, self.modules = name, on_disk, modules
        self.mtime = os.path.getmtime(on_disk.filename)
        self.te_multiplier = self.unet_multiplier = 1.0
        self.dyn_dim = None


def _layer_name(key):
    name = key.partition(".")[0]
    return name.replace("lora_unet_", "diffusion_model_").replace("lora_te_text", "transformer_text")


class OwnLora:
    """The extension in a WebUI (webui.py)."""

    def install(self, webui, undo):
        """Load it: its module `networks`. undo: an ExitStack that takes it out again"""
        networks, network = _modules(webui)
        undo.enter_context(importable([networks, network], {"networks", "network"}))
        networks.list_available_networks()
        for owner, name, replacement in _hooks(networks, webui.shared):
            undo.enter_context(mock.patch.object(owner, name, replacement))
        return networks

    def register(self, webui):
        """What it does before the UI is made."""
        network_class = lora_class(webui.extra_networks, webui.networks)
        webui.extra_networks.register_extra_network(network_class())


def _modules(webui):
    it = module("networks", loaded_networks=[], available_networks={}, available_network_aliases={},
                forbidden_network_aliases={}, networks_in_memory={})  # fmt: skip

    def process_network_files(names=None):
        for path in sorted(Path(webui.shared.cmd_opts.lora_dir).rglob("*.safetensors")):
            if names and path.stem not in names:
                continue
            entry = NetworkOnDisk(path.stem, str(path))
            it.available_networks[path.stem] = entry
            it.available_network_aliases[path.stem] = it.available_network_aliases[entry.alias] = entry

    def list_available_networks():
        it.available_networks.clear()
        it.available_network_aliases.clear()
        it.process_network_files()

    def load_network(name, on_disk):
        tensors, layers = load_file(on_disk.filename), {}
        for key, tensor in tensors.items():
            if (layer := _layer_name(key)) in webui.model.network_layer_mapping:
                layers.setdefault(layer, {})[key.partition(".")[2]] = tensor.to(webui.dtype)
        return _Network(name, on_disk, layers)

    def load_networks(names, te_multipliers=None, unet_multipliers=None, dyn_dims=None):
        known = {net.name: net for net in it.loaded_networks if net.name in names}
        it.loaded_networks.clear()
        if any(name not in it.available_network_aliases for name in names):
            it.list_available_networks()
        for number, name in enumerate(names):
            on_disk = it.available_network_aliases.get(name)
            if on_disk is None:
                continue
            net = known.get(name)
            if net is None or os.path.getmtime(on_disk.filename) > net.mtime:
                net = it.load_network(name, on_disk)
            net.te_multiplier = te_multipliers[number] if te_multipliers else 1.0
            net.unet_multiplier = unet_multipliers[number] if unet_multipliers else 1.0
            net.dyn_dim = dyn_dims[number] if dyn_dims else 1.0
            it.loaded_networks.append(net)

    def fields(layer):
        if isinstance(layer, nn.MultiheadAttention):
            return [(layer, "in_proj_weight"), (layer.out_proj, "weight")]
        return [(layer, "weight")]

    def bias_owner(layer):
        return layer.out_proj if isinstance(layer, nn.MultiheadAttention) else layer

    def network_restore_weights_from_backup(layer):
        copies, bias = getattr(layer, "network_weights_backup", None), getattr(layer, "network_bias_backup", None)
        for (owner, name), copy in zip(fields(layer), copies or ()):
            getattr(owner, name).copy_(copy)
        if copies is not None and bias is not None:
            bias_owner(layer).bias.copy_(bias)

    def network_reset_cached_weight(layer):
        layer.network_current_names = ()
        layer.network_weights_backup = layer.network_bias_backup = None

    def network_apply_weights(layer):
        if (name := getattr(layer, "network_layer_name", None)) is None:
            return
        current = getattr(layer, "network_current_names", ())
        wanted = tuple((n.name, n.te_multiplier, n.unet_multiplier, n.dyn_dim) for n in it.loaded_networks)
        if getattr(layer, "network_weights_backup", None) is None and wanted:
            if current:
                raise RuntimeError(f"{name}: no backup, and the weights are not unchanged")
            layer.network_weights_backup = tuple(getattr(*field).detach().clone() for field in fields(layer))
            bias = getattr(bias_owner(layer), "bias", None)
            layer.network_bias_backup = None if bias is None else bias.detach().clone()
        if current == wanted:
            return
        it.network_restore_weights_from_backup(layer)
        for net in it.loaded_networks:
            if (factors := net.modules.get(name)) is not None:
                strength = net.te_multiplier if "transformer" in name[:20] else net.unet_multiplier
                change = (factors["lora_up.weight"] @ factors["lora_down.weight"]).reshape(layer.weight.shape)
                change = change * 1.0 * strength
                layer.weight.copy_((layer.weight.to(change.dtype) + change).to(layer.weight.dtype))
        layer.network_current_names = wanted

    def network_forward(layer, given, original):
        if not it.loaded_networks:
            return original(layer, given)
        it.network_restore_weights_from_backup(layer)
        it.network_reset_cached_weight(layer)
        return original(layer, given)

    def assign_network_names_to_compvis_modules(sd_model):
        sd_model.network_layer_mapping = {}
        if sd_model.is_sdxl:
            parts = [(f"{i}_", part.wrapped) for i, part in enumerate(sd_model.conditioner.embedders)]
        else:
            parts = [("", sd_model.cond_stage_model.wrapped)]
        for prefix, part in [*parts, ("", sd_model.model)]:
            for name, layer in part.named_modules():
                layer.network_layer_name = prefix + name.replace(".", "_")
                sd_model.network_layer_mapping[layer.network_layer_name] = layer

    for function in (
        process_network_files, list_available_networks, load_network, load_networks, network_apply_weights,
        network_restore_weights_from_backup, network_reset_cached_weight, network_forward,
        assign_network_names_to_compvis_modules,
    ):  # fmt: skip
        setattr(it, function.__name__, function)
    return [it, module("network", NetworkOnDisk=NetworkOnDisk, SdVersion=SdVersion)]


def _hooks(networks, shared):
    """(class, name, what to put there) for every layer that the extension hooks."""

    def forward_of(original, has_old_way):
        def forward(layer, *args, **kwargs):
            if has_old_way and shared.opts.lora_functional:
                return networks.network_forward(layer, *args, original)
            networks.network_apply_weights(layer)
            return original(layer, *args, **kwargs)

        return forward

    def loading_of(original):
        def load(layer, *args, **kwargs):
            networks.network_reset_cached_weight(layer)
            return original(layer, *args, **kwargs)

        return load

    for kind in HOOKED:
        yield kind, "forward", forward_of(kind.forward, kind is not nn.MultiheadAttention)
        yield kind, "_load_from_state_dict", loading_of(kind._load_from_state_dict)


def lora_class(extra_networks, networks, has_dims=True):
    """`<lora:…>` for this extension. has_dims: whether its networks have a dimension that a tag may choose"""

    class ExtraNetworkLora(extra_networks.ExtraNetwork):
        def __init__(self):
            super().__init__("lora")
            self.errors = {}

        def activate(self, p, params_list):
            text = [_strength(params, "te", 1, 1.0) for params in params_list]
            unet = [_strength(params, "unet", 2, te) for params, te in zip(params_list, text)]
            names = [params.positional[0] for params in params_list]
            networks.load_networks(names, text, unet, *([[None] * len(names)] if has_dims else []))

        def deactivate(self, p):
            pass

    return ExtraNetworkLora


def _strength(params, key, place, otherwise):
    said = params.positional[place] if len(params.positional) > place else otherwise
    return float(params.named.get(key, said))
