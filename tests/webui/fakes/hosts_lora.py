"""The host's own extension for LoRAs, its files run alone out of a checkout (A1111_DIR), on stand-ins for the rest."""

import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from .stand_ins import importable, module

CHECKOUT = os.environ.get("A1111_DIR")
_FILES = ("networks", "network", "lora_patches", "lora_logger", "lyco_helpers", "extra_networks_lora", "network_lora",
          "network_glora", "network_hada", "network_ia3", "network_lokr", "network_full", "network_norm",
          "network_oft")  # fmt: skip


class HostsLora:
    """See OwnLora."""

    def install(self, webui, undo):
        folder = Path(CHECKOUT, "extensions-builtin", "Lora")
        undo.enter_context(importable(_stand_ins(webui), set(_FILES)))
        sys.path.insert(0, str(folder))
        undo.callback(sys.path.remove, str(folder))
        import lora_patches
        import networks

        networks.originals = lora_patches.LoraPatches()
        undo.callback(lambda: networks.originals.undo())
        return networks

    def register(self, webui):
        import extra_networks_lora

        webui.networks.extra_network_lora = extra_networks_lora.ExtraNetworkLora()
        webui.extra_networks.register_extra_network(webui.networks.extra_network_lora)


def _stand_ins(webui):
    opts = webui.shared.opts
    opts.sd_lora, opts.lora_add_hashes_to_infotext, opts.lora_in_memory_limit = "None", False, 0
    opts.lora_not_found_warning_console = opts.lora_not_found_gradio_warning = False
    opts.lora_preferred_name, opts.extra_networks_default_multiplier = "Filename", 1.0
    webui.shared.walk_files = lambda folder, allowed_extensions=None: map(str, Path(folder).rglob("*.safetensors"))
    webui.shared.cmd_opts.lyco_dir_backcompat = str(webui.folder / "none")
    webui.shared.__getattr__ = lambda name: {"sd_model": webui.model}[name]  # asked for what the module does not have
    webui.sd_models.read_state_dict = load_file
    webui.sd_models.read_metadata_from_safetensors = _metadata
    embeddings = SimpleNamespace(word_embeddings={}, expected_shape=-1, skipped_embeddings={})
    hijack = sys.modules["modules.sd_hijack"]
    hijack.model_hijack = SimpleNamespace(embedding_db=embeddings, comments=[])
    return [
        module("modules.scripts"), module("modules.textual_inversion"),
        module("modules.textual_inversion.textual_inversion"), module("modules.models"),
        module("modules.models.sd3"), module("modules.models.sd3.mmdit", QkvLinear=type("QkvLinear", (nn.Linear,), {})),
        module("modules.devices", cpu=torch.device("cpu"), device=torch.device("cpu"), dtype=webui.dtype,
               torch_gc=lambda: None, cond_cast_unet=lambda given: given),
        module("modules.errors", display=_raised, report=_raised),
        module("modules.cache", cached_data_for_file=lambda kind, title, path, read: read()),
        module("modules.hashes", sha256_from_cache=lambda *_, **__: None, sha256=lambda *_, **__: "0" * 64),
        module("modules.patches", **_own("patches")),
    ]  # fmt: skip


def _own(name):
    """What a module of the host's holds that needs nothing else of it."""
    found = runpy.run_path(str(Path(CHECKOUT, "modules", f"{name}.py")))
    return {key: value for key, value in found.items() if not key.startswith("__")}


def _metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _raised(error, task, **_):
    raise error
