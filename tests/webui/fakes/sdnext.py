"""SD.Next in this process, written anew by its rules: the order of calls of a picture, LoRAs that are added to the
weights and subtracted again, and what is kept of encoded prompts under which keys.

    with sdnext_running(folder, torch.float16) as webui:
        picture, = webui.draw("a cat <sara:style:0.8>")

A picture is what its layers computed with, as in webui.py; what is the same there is taken from there.
"""

import logging
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

from .models import clip, is_of_text, is_of_unet, nested, unet
from .stand_ins import importable, module
from .webui import FORGOTTEN, WebUI, extra_networks_module

# What a checkpoint calls the layers of the other fakes' models → what diffusers calls them.
_IN_DIFFUSERS = {
    "input_blocks.0.0": "conv_in", "input_blocks.1.1": "down_blocks.0.attentions.0", "out.2": "conv_out",
}  # fmt: skip


class Pipeline:
    """state: name in a checkpoint → weight"""

    def __init__(self, state, info):
        self.sd_checkpoint_info = info
        self.stored = {}
        self.unet = self._model(unet(), "model.diffusion_model.", state)
        # By the number of its residual blocks it is told which block has which number in a checkpoint.
        self.unet.down_blocks.get_submodule("0").add_module("resnets", nested({"1.conv1": torch.nn.Conv2d(8, 8, 1)}))
        layers = {name.removeprefix("transformer."): layer for name, layer in clip().items()}
        self.text_encoder = self._model(nested(layers), "cond_stage_model.transformer.", state)

    def _model(self, made, prefix, state):
        layers, names = {}, {}
        for path, layer in made.named_modules():
            if layer._parameters:
                stored = path.removeprefix("diffusion_model.")
                known = next((old for old in _IN_DIFFUSERS if stored.startswith(old)), "")
                layers[own := _IN_DIFFUSERS.get(known, "") + stored.removeprefix(known)] = layer
                names |= {f"{prefix}{stored}.{name}": (own, name) for name in layer._parameters}
        model = nested(layers)
        for name, (path, last) in names.items():
            layer = model.get_submodule(path)
            if layer._parameters[last] is not None:
                setattr(layer, last, torch.nn.Parameter(state[name].clone(), requires_grad=False))
                self.stored[name] = layer, last
        return model

    def weights(self):
        return {name: getattr(*place) for name, place in self.stored.items()}


class SDNextWebUI(WebUI):
    """What `sdnext_running` makes; see WebUI."""

    merges_in_float32 = True

    def __init__(self, folder, dtype):
        super().__init__(folder, dtype)
        self.loras = []  # that are on the weights
        self.known_loras = "", []
        self.encoded = {}

    def draw(self, prompt, n_iter=1, hr_prompt=None, hr_checkpoint=None, checkpoint=None, lowvram=False):
        """See WebUI.draw; it has no other checkpoint for hires, and no other way with little memory."""
        self.chosen = checkpoint or self.chosen
        if self.model is None or self.model.sd_checkpoint_info.title != self.chosen:
            self.sd_models.unload_model_weights()
            self.model, self.loras = Pipeline(self.state(self.chosen), self.infos(self.chosen)), []
            self.known_loras = "", []
        self.p = p = self.processing.StableDiffusionProcessingTxt2Img()
        pictures = []
        for _ in range(n_iter):
            for text in [prompt] if hr_prompt is None else [prompt, hr_prompt]:
                p.text, p.network_data = self.extra_networks.parse_prompt(text)
                self.extra_networks.activate_filtered(p)
                pictures.append({**self._encoded_by(p), **self._of(is_of_unet)})
            self.extra_networks.deactivate(p)
        self.below = self.processing.get_processed(p, images_list=pictures, comments="").comments
        return pictures

    def _encoded_by(self, p):
        cache = self.prompt_parser_diffusers.cache
        key = str([p.text, [params.items for given in p.network_data.values() for params in given]])
        if key not in cache:
            cache[key] = self._of(is_of_text)
        return cache[key]

    def _of(self, is_wanted):
        return {name: weight for name, weight in self.weights().items() if is_wanted(name)}

    def bring_loras(self, wanted):
        """wanted: file and strength of each; those that are on are subtracted first, if they are others"""
        if wanted != self.loras:
            for sign, loras in ((-1, self.loras), (1, wanted)):
                for path, strength in loras:
                    self._add(load_file(path), sign * strength)
            self.loras = wanted

    @torch.no_grad()
    def _add(self, tensors, strength):
        for name, (layer, last) in self.model.stored.items():
            stem = name.removesuffix(".weight").replace(".", "_").replace("model_diffusion_model", "lora_unet")
            stem = stem.replace("cond_stage_model_transformer", "lora_te")
            if f"{stem}.lora_up.weight" in tensors:
                up, down = (tensors[f"{stem}.lora_{side}.weight"] for side in ("up", "down"))
                weight = getattr(layer, last)
                layer._parameters[last].data = (weight.float() + strength * (up @ down)).to(weight.dtype)


def _processing():
    class StableDiffusionProcessingTxt2Img:
        def __init__(self):
            self.comments, self.extra_generation_params, self.is_hr_pass = {}, {}, False
            self.network_data, self.disable_extra_networks = defaultdict(list), False
            self.lora_apply_te = None

        def comment(self, text):
            self.comments[text] = 1

    def get_processed(p, images_list, comments=""):
        return SimpleNamespace(images=images_list, comments=comments)

    return module(
        "modules.processing", StableDiffusionProcessingTxt2Img=StableDiffusionProcessingTxt2Img,
        get_processed=get_processed,
    )  # fmt: skip


class _Console(logging.Handler):
    """Of its own logger, and of all others that there are when it has started; the root logger has none."""

    def __init__(self):
        super().__init__()
        self.lines = []
        self.logger = logging.Logger("sd", logging.DEBUG)

    def emit(self, record):
        self.lines.append(record.getMessage())

    @contextmanager
    def of_all(self):
        others = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("sara")]
        before = [list(other.handlers) for other in others]
        for other in others:
            other.handlers = [self]
        try:
            yield
        finally:
            for other, handlers in zip(others, before):
                other.handlers = handlers


def _extra_networks(webui):
    it = extra_networks_module(webui)

    class Lora(it.ExtraNetwork):
        def activate(self, p, params_list, step=0, include=None, exclude=None):
            # What is on is known by what was left out when it was put on.
            key, before = str(exclude or []), webui.known_loras
            webui.known_loras = key, [params.items for params in params_list]
            if (before[1] if before[0] == key else []) == webui.known_loras[1]:
                webui.known_loras = before
                return
            paths = [(Path(webui.folder, "Lora", f"{params.positional[0]}.safetensors"), float(params.positional[1]))
                     for params in params_list]  # fmt: skip
            webui.bring_loras([(path, strength) for path, strength in paths if path.exists()])

        def deactivate(self, p, force=False):
            if force:
                webui.bring_loras([])
                webui.known_loras = "", []

    def activate(p, extra_network_data=None, step=0, include=None, exclude=None):
        if p.disable_extra_networks:
            return
        data = extra_network_data or p.network_data
        for name, network in it.extra_network_registry.items():
            try:
                if webui.failing == name and name in data:
                    webui.failing = None
                    raise RuntimeError("as asked for")
                filters = {"include": include, "exclude": exclude} if isinstance(network, Lora) else {}
                network.activate(p, data.get(name, []), step=step, **filters)
            except Exception:
                webui.swallowed += 1
        p.network_data = data

    def activate_filtered(p, extra_network_data=None, step=0):
        is_for_text = webui.shared.opts.lora_apply_te if p.lora_apply_te is None else p.lora_apply_te
        it.activate(p, extra_network_data, step=step, exclude=[] if is_for_text else ["text_encoder"])

    def deactivate(p, extra_network_data=None, force=None):
        for network in it.extra_network_registry.values():
            network.deactivate(p, force=webui.shared.opts.lora_force_reload if force is None else force)

    it.activate, it.activate_filtered, it.deactivate, it.lora = activate, activate_filtered, deactivate, Lora("lora")
    return it


class _Lora:
    def register(self, webui):
        webui.extra_networks.register_extra_network(webui.extra_networks.lora)


@contextmanager
def sdnext_running(folder, dtype=torch.float32):
    """See webui.running."""
    webui = SDNextWebUI(folder, dtype)
    options = SimpleNamespace(
        lora_dir=str(webui.folder / "Lora"), lora_force_reload=False, lora_apply_te=False,
        sd_model_checkpoint="one",
    )
    webui.shared = module("modules.shared", cmd_opts=SimpleNamespace(), opts=options)
    webui.extra_networks, webui.processing, webui.lora = _extra_networks(webui), _processing(), _Lora()
    webui.sd_models = module("modules.sd_models", unload_model_weights=lambda op="model": None)
    webui.prompt_parser_diffusers = module("modules.prompt_parser_diffusers", cache={})
    webui.console = _Console()
    webui.script_callbacks = module("modules.script_callbacks")
    data = type("Data", (), {"sd_model": property(lambda self: webui.model)})()
    modules = [
        module("modules"), webui.shared, webui.extra_networks, webui.processing, webui.sd_models,
        webui.prompt_parser_diffusers, webui.script_callbacks, module("modules.sd_checkpoint"),
        module("modules.logger", log=webui.console.logger),
        module("modules.modeldata", model_data=data), module("modules.paths", models_path=str(webui.folder)),
        module("gradio", __getattr__=lambda name: object),
    ]  # fmt: skip
    with importable(modules, FORGOTTEN):
        webui.load_extension()
        with webui.console.of_all():
            yield webui
