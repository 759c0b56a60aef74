"""Forge and its kin in this process, written anew by their rules: the order of calls of a picture, what is kept under
which keys, and where the models lie that compute.

    with forge_running(folder, Neo(), torch.float16) as webui:
        picture, = webui.draw("a cat <sara:style:0.8>")

A picture is what its layers computed with, as in webui.py; what is the same there is taken from there.
"""

from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from torch import nn

from .lora import NetworkOnDisk, lora_class
from .models import clip, is_of_text, is_of_unet, nested, unet
from .stand_ins import importable, module
from .webui import FORGOTTEN, WebUI, extra_networks_module, processing_module


# The host computes with them in fp32, from the first prompt that it encodes.
_EMBEDDINGS = "clip_l.transformer.text_model.embeddings.token_embedding"


class Objects:
    """What draws: the two models' patchers."""

    def __init__(self, unet, clip):
        self.unet, self.clip = unet, clip

    def shallow_copy(self):
        return Objects(self.unet, self.clip)


class _CLIP:
    def __init__(self, patcher):
        self.patcher = patcher
        self.cond_stage_model = patcher.model

    def clone(self):
        return _CLIP(self.patcher.clone())

    def add_patches(self, *args, **kwargs):
        return self.patcher.add_patches(*args, **kwargs)


class _Around(nn.Module):
    """What the host puts around a text encoder's embedding: it computes with the inner one, and shows its weight."""

    def __init__(self, wrapped):
        super().__init__()
        self.wrapped, self.weight = wrapped, wrapped.weight


class _Engine:
    """A loaded model. rules: of forge_patchers; state: name in a checkpoint → weight"""

    def __init__(self, rules, state, info):
        self.sd_checkpoint_info, self.is_sd1 = info, True
        with torch.inference_mode():
            parts = unet(), nested({f"clip_l.{name}": layer for name, layer in clip().items()})
            for part in parts:
                for name, _ in list(part.named_parameters()):
                    owner, _, last = name.rpartition(".")
                    weight = state[_stored_name(name)].clone()
                    setattr(part.get_submodule(owner), last, nn.Parameter(weight, requires_grad=False))
            embeddings = parts[1].get_submodule("clip_l.transformer.text_model.embeddings")
            embeddings.token_embedding = _Around(embeddings.token_embedding)
        diffusion, text = (rules.patcher(part, rules) for part in parts)
        self.forge_objects = Objects(diffusion, _CLIP(text))
        self.forge_objects_original = self.forge_objects.shallow_copy()
        self.forge_objects_after_applying_lora = self.forge_objects.shallow_copy()
        self.current_lora_hash = str([])

    def weights(self):
        """By the names that a checkpoint has for them, as they are now; of what has something around it, the inner."""
        both = self.forge_objects_original
        return {_stored_name(name.replace("wrapped.", "")): weight
                for model in (both.unet.model, both.clip.cond_stage_model)
                for name, weight in model.named_parameters(remove_duplicate=False)}  # fmt: skip


def _stored_name(name):
    return f"cond_stage_model.{name.removeprefix('clip_l.')}" if name.startswith("clip_l.") else f"model.{name}"


class _NoModel:
    """What stands there while no model is loaded."""


class ForgeWebUI(WebUI):
    """What `forge_running` makes; see WebUI."""

    merges_in_float32 = True

    def __init__(self, folder, rules, dtype):
        super().__init__(folder, dtype)
        self.rules, self.model = rules, _NoModel()

    def weights(self):
        """As the next picture of the same tags would have them."""
        self._load(self.model.forge_objects_after_applying_lora)
        return self.weights_now()

    def weights_now(self):
        """As they are, whatever is to be done to them before the next picture."""
        return {name: weight.detach().clone() for name, weight in self.model.weights().items()}

    def base(self, name=None):
        wide = self.rules.widens_embeddings
        return {key: tensor.float() if wide and "embedding" in key else tensor
                for key, tensor in super().base(name).items()}  # fmt: skip

    def draw(self, prompt, n_iter=1, hr_prompt=None, hr_checkpoint=None, checkpoint=None, lowvram=False):
        """See WebUI.draw; it has no other way with little memory."""
        if checkpoint is not None:
            self.chosen = checkpoint
        self.p = p = self.processing.StableDiffusionProcessingTxt2Img()
        pictures = []
        with torch.inference_mode():
            for p.iteration in range(n_iter):
                self.reload_model_weights()
                self.model.forge_objects = self.model.forge_objects_original.shallow_copy()
                p.text, p.extra_network_data = self.extra_networks.parse_prompt(prompt)
                self.extra_networks.activate(p, p.extra_network_data)
                self.model.forge_objects = self.model.forge_objects_after_applying_lora.shallow_copy()
                cond, hr_cond = self._encoded([p.cached_c], p.text, p.extra_network_data), None
                if hr_prompt is not None:
                    p.hr_text, p.hr_data = self.extra_networks.parse_prompt(hr_prompt)
                    if hr_checkpoint is None:
                        self.extra_networks.activate(p, p.hr_data)
                        hr_cond = self._encoded([p.cached_hr_c, p.cached_c], p.hr_text, p.hr_data)
                        self.extra_networks.activate(p, p.extra_network_data)
                self.model.forge_objects = self.model.forge_objects_after_applying_lora.shallow_copy()
                pictures.append(self._drawn(cond))
                if hr_prompt is not None:
                    pictures.append(self._second_pass(p, hr_checkpoint, hr_cond))
        return pictures

    def _second_pass(self, p, hr_checkpoint, cond):
        p.is_hr_pass = True
        if hr_checkpoint is not None:
            self.reload_model_weights(self.infos(hr_checkpoint))
            self.model.forge_objects = self.model.forge_objects_after_applying_lora.shallow_copy()
        self.extra_networks.activate(p, p.hr_data)
        if cond is None:
            cond = self._encoded([p.cached_hr_c, p.cached_c], p.hr_text, p.hr_data)
        self.model.forge_objects = self.model.forge_objects_after_applying_lora.shallow_copy()
        p.is_hr_pass = False
        return self._drawn(cond)

    def _encoded(self, caches, text, data):
        key = (text, self.model.sd_checkpoint_info.filename, dict(data))
        for cache in caches:
            if cache[0] is not None and cache[0] == key:
                return cache[1]
        self.model.forge_objects.clip.patcher.load()
        if self.rules.widens_embeddings:
            self.model.forge_objects.clip.cond_stage_model.get_submodule(_EMBEDDINGS).to(torch.float32)
        caches[0][:] = [key, {name: tensor for name, tensor in self.weights_now().items() if is_of_text(name)}]
        return caches[0][1]

    def _drawn(self, cond):
        self.model.forge_objects.unet.load()
        return {**cond, **{name: tensor for name, tensor in self.weights_now().items() if is_of_unet(name)}}

    def _load(self, objects):
        objects.unet.load()
        objects.clip.patcher.load()

    def both_patchers(self):
        """Of the models of what is loaded."""
        if isinstance(self.model, _NoModel):
            return []
        return [self.model.forge_objects.unet, self.model.forge_objects.clip.patcher]

    def unload_all_models(self):
        for patcher in self.both_patchers():
            patcher.unload()

    def reload_model_weights(self, info=None):
        info = info or self.infos(self.chosen)
        if not isinstance(self.model, _NoModel) and self.model.sd_checkpoint_info.filename == info.filename:
            return
        self.unload_all_models()
        self.model = None
        self.model = _Engine(self.rules, self.state(info.name_for_extra), info)


class ForgeLora:
    """The built-in extension for LoRAs."""

    def install(self, webui, undo):
        networks, network = _lora_modules(webui)
        undo.enter_context(importable([networks, network], {"networks", "network"}))
        networks.list_available_networks()
        return networks

    def register(self, webui):
        """What it does before the UI is made."""
        webui.extra_networks.register_extra_network(
            lora_class(webui.extra_networks, webui.networks, has_dims=webui.rules.loads_with_dims)()
        )


def _lora_modules(webui):
    it = module("networks", available_networks={}, available_network_aliases={}, forbidden_network_aliases={},
                kept={})  # fmt: skip

    def process_network_files(names=None):
        for path in sorted(Path(webui.shared.cmd_opts.lora_dir).rglob("*.safetensors")):
            if not names or path.stem in names:
                entry = NetworkOnDisk(path.stem, str(path))
                it.available_networks[path.stem] = it.available_network_aliases[path.stem] = entry

    def list_available_networks():
        it.available_networks.clear()
        it.available_network_aliases.clear()
        getattr(it, "process_network_files", process_network_files)()

    def load_networks(names, te_multipliers=None, unet_multipliers=None, dyn_dims=None):
        model = webui.model
        if model is None:
            return
        if any(name not in it.available_network_aliases for name in names):
            it.list_available_networks()
        found = [it.available_network_aliases.get(name) for name in names]
        wanted = [[entry.filename, *strengths] for entry, *strengths in zip(found, unet_multipliers, te_multipliers)
                  if entry is not None]  # fmt: skip
        if model.current_lora_hash == str(wanted):
            return
        model.current_lora_hash = str(wanted)
        model.forge_objects.unet, model.forge_objects.clip = (
            model.forge_objects_original.unet, model.forge_objects_original.clip,
        )  # fmt: skip
        for filename, *strengths in wanted:
            if filename not in it.kept:  # by its path alone
                it.kept[filename] = load_file(filename)
            for part, strength in zip(("unet", "clip"), strengths):
                old = getattr(model.forge_objects, part)
                if patches := _lora_patches(it.kept[filename], getattr(old, "patcher", old).model):
                    new = old.clone()
                    webui.rules.add_lora(new, filename, patches, strength)
                    setattr(model.forge_objects, part, new)
        model.forge_objects_after_applying_lora = model.forge_objects.shallow_copy()

    it.load_networks, it.list_available_networks = load_networks, list_available_networks
    if webui.rules.can_list_some:
        it.process_network_files = process_network_files
    return [it, module("network", NetworkOnDisk=NetworkOnDisk)]


def _lora_patches(tensors, model):
    patches = {}
    for name, _ in model.named_parameters():
        flat = name.removesuffix(".weight").replace(".", "_")
        stem = flat.replace("diffusion_model", "lora_unet", 1).replace("clip_l_transformer", "lora_te", 1)
        if f"{stem}.lora_up.weight" in tensors:
            patches[name] = ("lora", [tensors[f"{stem}.lora_{side}.weight"] for side in ("up", "down")])
    return patches


@contextmanager
def forge_running(folder, rules, dtype=torch.float32, with_lora=True):
    """A WebUI of this family; see webui.running. rules: one of forge_patchers: Neo, Forge, ReForge, Classic"""
    webui = ForgeWebUI(folder, rules, dtype)
    lora_dir = str(webui.folder / "Lora")
    webui.shared = module("modules.shared", cmd_opts=SimpleNamespace(lora_dir=lora_dir, lora_dirs=[]))
    webui.extra_networks, webui.processing = extra_networks_module(webui), processing_module()
    webui.sd_models = module(
        "modules.sd_models", model_data=type("Data", (), {"sd_model": property(lambda self: webui.model)})()
    )
    webui.script_callbacks = module("modules.script_callbacks")
    modules = [
        module("modules"), webui.shared, webui.extra_networks, webui.processing, webui.sd_models,
        webui.script_callbacks, module("modules.paths", models_path=str(webui.folder)), module("modules_forge"),
        module("gradio", __getattr__=lambda name: object), *rules.modules(webui),
    ]  # fmt: skip
    with importable(modules, {*FORGOTTEN, "modules_forge", "backend", "ldm_patched"}), ExitStack() as undo:
        if with_lora:
            webui.lora = ForgeLora()
            webui.networks = webui.lora.install(webui, undo)
        webui.load_extension()
        yield webui
