"""A WebUI of AUTOMATIC1111's kind in this process, written anew by its rules: the order of its calls, what it keeps
under which keys, and what it does to weights when another checkpoint is chosen.

    with running(folder, torch.float16) as webui:
        picture, = webui.draw("a cat <sara:style:0.8>")

A picture is what its layers computed with: name → weight, for text encoders as they were when the prompt was encoded.
"""

import re
import runpy
import sys
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

from .lora import OwnLora
from .models import SDModel, checkpoint, is_of_text, is_of_unet, run
from .stand_ins import importable, module

# Of a model's weights, one that no layer hooks: the host replaces what is in it with every checkpoint.
CHECKPOINTS = {"one": 1, "two": 2}
_TAG = re.compile(r"<(\w+):([^>]+)>")
FORGOTTEN = {"sara_webui", "modules", "networks", "network", "gradio"}
_EXTENSION = Path(__file__).parents[3] / "scripts" / "sara_extension.py"


class WebUI:
    """What `running` makes; see there. merges_in_float32: whether all that is put on a weight is rounded once"""

    merges_in_float32 = False

    def __init__(self, folder, dtype, is_sdxl=False):
        self.folder, self.dtype, self.is_sdxl = Path(folder), dtype, is_sdxl
        self.model = None
        self.loaded = []
        self.limit = 1  # of models in memory
        self.networks = self.lora = None
        self.failing = None  # the name of a network whose activate raises once
        for name in ("sara", "Lora"):
            Path(folder, name).mkdir(exist_ok=True)
        self.chosen = "one"
        self.swallowed = 0  # exceptions of networks

    def infos(self, name):
        return SimpleNamespace(name_for_extra=name, filename=f"{name}.safetensors", title=name)

    def state(self, name):
        stored = checkpoint(CHECKPOINTS[name], self.is_sdxl)
        return {key: tensor.to(self.dtype, copy=True) for key, tensor in stored.items()}

    def base(self, name=None):
        """Name → weight of a checkpoint, the chosen one, as the model has it when nothing is on it."""
        return self.state(name or self.chosen)

    def weights(self):
        """Name → weight, as they are now."""
        return {name: weight.detach().clone() for name, weight in self.model.weights().items()}

    def draw(self, prompt, n_iter=1, hr_prompt=None, hr_checkpoint=None, checkpoint=None, lowvram=False):
        """The pictures of a prompt, in order; of each the first pass and, with hr_prompt, the second. Sets self.p."""
        if checkpoint is not None:
            self.chosen = checkpoint
        self.p = p = self.processing.StableDiffusionProcessingTxt2Img()
        p.n_iter, p.hr_prompt, pictures = n_iter, hr_prompt, []
        with torch.no_grad():
            self.sd_models.reload_model_weights()
            for p.iteration in range(n_iter):
                self.sd_models.reload_model_weights()
                p.text, p.extra_network_data = self.extra_networks.parse_prompt(prompt)
                self.extra_networks.activate(p, p.extra_network_data)
                p.cond = self._encoded(p.cached_c, p.text, p.extra_network_data)
                if hr_prompt is not None:
                    p.hr_text, p.hr_data = self.extra_networks.parse_prompt(hr_prompt)
                    if lowvram:  # the second pass's prompt is encoded before the text encoders go
                        self.extra_networks.activate(p, p.hr_data)
                        self._encoded(p.cached_hr_c, p.hr_text, p.hr_data)
                        self.extra_networks.activate(p, p.extra_network_data)
                pictures.append(self._drawn(p.cond))
                if hr_prompt is not None:
                    p.is_hr_pass = True
                    if hr_checkpoint is not None:
                        self.sd_models.reload_model_weights(info=self.infos(hr_checkpoint))
                    self.extra_networks.activate(p, p.hr_data)
                    pictures.append(self._drawn(self._encoded(p.cached_hr_c, p.hr_text, p.hr_data)))
                    p.is_hr_pass = False
        return pictures

    def _encoded(self, cache, text, data):
        """What the text encoders make of a prompt: from the cache, if prompt, tags and checkpoint are the last ones."""
        key = (text, self.model.sd_checkpoint_info, dict(data))
        if cache[0] is None or cache[0] != key:
            run(self.model.conditioner if self.is_sdxl else self.model.cond_stage_model)
            cache[:] = [key, {name: tensor for name, tensor in self.weights().items() if is_of_text(name)}]
        return cache[1]

    def _drawn(self, cond):
        run(self.model.model)
        return {**cond, **{name: tensor for name, tensor in self.weights().items() if is_of_unet(name)}}

    def load_extension(self):
        """As at the start, and again when the UI is reloaded: every script runs, then the callbacks, in reverse."""
        names = ("before_ui", "script_unloaded", "infotext_pasted", "ui_tabs", "app_started")
        self.callbacks = {name: [] for name in names}
        for name, registered in self.callbacks.items():
            setattr(self.script_callbacks, f"on_{name}", registered.append)
        if self.lora is not None:
            self.script_callbacks.on_before_ui(lambda: self.lora.register(self))
        runpy.run_path(str(_EXTENSION))
        self.extra_networks.extra_network_registry.clear()
        for callback in reversed(self.callbacks["before_ui"]):
            callback()

    def reload_ui(self):
        for callback in reversed(self.callbacks["script_unloaded"]):
            callback()
        self.load_extension()

    def paste(self, infotext, parameters):
        for callback in reversed(self.callbacks["infotext_pasted"]):
            callback(infotext, parameters)
        return parameters

    def host(self):
        """What our extension has found this WebUI to be."""
        return sys.modules["sara_webui.hosts"].current()

    # What follows is what the WebUI's modules do.

    def load_model(self, info, state=None):
        if self.model is not None:
            self.sd_models.send_model_to_trash(self.model)
        self.model = SDModel(self.is_sdxl)
        self.sd_models.load_model_weights(self.model, info, state, None)
        self.loaded.insert(0, self.model)
        if self.networks is not None:
            self.networks.assign_network_names_to_compvis_modules(self.model)
        p = self.processing.StableDiffusionProcessingTxt2Img()
        self.extra_networks.activate(p, {})
        run(self.model.conditioner if self.is_sdxl else self.model.cond_stage_model)

    def load_model_weights(self, model, info, state, timer):
        model.load_state_dict({name: tensor for name, tensor in self._stored(model, info).items()}, strict=False)
        model.to(self.dtype)
        model.sd_checkpoint_info = info

    def _stored(self, model, info):
        state = self.state(info.name_for_extra)
        return {name: state[name.replace(".wrapped", "")] for name, _ in model.named_parameters()}

    def send_model_to_trash(self, model):
        model.to(device="meta")

    def reload_model_weights(self, info=None):
        info = info or self.infos(self.chosen)
        if self.model is not None and self.model.sd_checkpoint_info.filename == info.filename:
            return
        known = [model for model in self.loaded if model.sd_checkpoint_info.filename == info.filename]
        if known:
            self.model = known[0]
        elif self.model is None or len(self.loaded) < self.limit:
            self.model = None  # the other one stays
            self.load_model(info)
        else:
            self.sd_models.load_model_weights(self.model, info, None, None)


def extra_networks_module(webui):
    it = module("modules.extra_networks", extra_network_registry={})

    class ExtraNetwork:
        def __init__(self, name):
            self.name = name

    class ExtraNetworkParams:
        def __init__(self, items):
            self.items = items
            parts = [item.split("=", 1) for item in items]
            self.positional = [part[0] for part in parts if len(part) == 1]
            self.named = dict(part for part in parts if len(part) == 2)

        def __eq__(self, other):
            return self.items == other.items

    def parse_prompt(prompt):
        data = defaultdict(list)
        for kind, items in _TAG.findall(prompt):
            data[kind].append(ExtraNetworkParams(items.split(":")))
        return _TAG.sub("", prompt), data

    def activate(p, data):
        done = []
        mentioned = {it.extra_network_registry[name]: given for name, given in data.items()
                     if name in it.extra_network_registry}  # fmt: skip
        for network, given in mentioned.items():
            try:
                if webui.failing == network.name:
                    webui.failing = None
                    raise RuntimeError("as asked for")
                network.activate(p, given)
                done.append(network)
            except Exception:
                webui.swallowed += 1
        for network in it.extra_network_registry.values():
            if network not in done:
                try:
                    network.activate(p, [])
                except Exception:
                    webui.swallowed += 1

    def register_extra_network(network):
        it.extra_network_registry[network.name] = network

    it.ExtraNetwork, it.ExtraNetworkParams = ExtraNetwork, ExtraNetworkParams
    it.parse_prompt, it.activate, it.register_extra_network = parse_prompt, activate, register_extra_network
    return it


def processing_module():
    class StableDiffusionProcessingTxt2Img:
        cached_c, cached_uc = [None, None], [None, None]
        cached_hr_c, cached_hr_uc = [None, None], [None, None]

        def __init__(self):
            self.comments, self.extra_generation_params, self.is_hr_pass = {}, {}, False
            self.iteration, self.scripts = 0, None

        def comment(self, text):
            self.comments[text] = 1

    return module("modules.processing", StableDiffusionProcessingTxt2Img=StableDiffusionProcessingTxt2Img)


@contextmanager
def running(folder, dtype=torch.float32, is_sdxl=False, lora_extension=OwnLora):
    """A WebUI with deltas in folder/sara and LoRAs and deltas in folder/Lora, with our extension loaded and installed.

    lora_extension: the class of the extension for LoRAs; None where it is switched off
    """
    webui = WebUI(folder, dtype, is_sdxl)
    webui.shared = module(
        "modules.shared",
        cmd_opts=SimpleNamespace(lora_dir=str(webui.folder / "Lora"), lyco_dir_backcompat=None),
        opts=SimpleNamespace(lora_functional=False),
    )
    webui.extra_networks, webui.processing = extra_networks_module(webui), processing_module()
    webui.sd_models = module(
        "modules.sd_models", load_model_weights=webui.load_model_weights,
        send_model_to_trash=webui.send_model_to_trash, reload_model_weights=webui.reload_model_weights,
        model_data=type("Data", (), {"sd_model": property(lambda self: webui.model)})(),
    )  # fmt: skip
    webui.script_callbacks = module("modules.script_callbacks")
    modules = [module("modules"), webui.shared, webui.extra_networks, webui.processing, webui.sd_models,
               webui.script_callbacks, module("modules.paths", models_path=str(webui.folder)),
               module("modules.sd_hijack"), module("gradio", __getattr__=lambda name: object)]  # fmt: skip
    with importable(modules, FORGOTTEN), ExitStack() as undo:
        if lora_extension is not None:
            webui.lora = lora_extension()
            webui.networks = webui.lora.install(webui, undo)
        webui.load_extension()
        yield webui
