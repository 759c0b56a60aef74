"""Put among a WebUI's extensions while it is measured: its UNet's weights as a file, and what its networks take.
Its pictures are grey: nothing here looks at them, and a VAE in fp16 takes minutes for one on a CPU.

Runs in the WebUI's process, and is never part of what is installed.
"""

import sys
import time

import torch
from modules import call_queue, extra_networks, processing, script_callbacks, sd_models
from safetensors.torch import save_file

_HOOKED = torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm, torch.nn.MultiheadAttention
_COPIES = "network_weights_backup", "network_bias_backup"


def _unet():
    model = sd_models.model_data.sd_model
    # Forge and those that came of it have the networks of their models beside each other.
    parts = getattr(model, "forge_objects_original", None)
    return (model.model if parts is None else parts.unet.model).diffusion_model


def _layers():
    return [layer for layer in sd_models.model_data.sd_model.network_layer_mapping.values()
            if isinstance(layer, _HOOKED)]  # fmt: skip


def _copied(layers):
    """Bytes of the copies of weights that layers have."""
    found = [getattr(layer, name, None) for layer in layers for name in _COPIES]
    tensors = [each for one in found for each in (one if isinstance(one, tuple) else (one,)) if each is not None]
    return sum(each.nbytes for each in tensors)


def _timed(prompt):
    """Everything that a prompt's networks take until the next forward begins: the host puts its own into a layer in
    that layer's forward, by the function that is called here."""
    processed = processing.StableDiffusionProcessingTxt2Img()
    _, data = extra_networks.parse_prompt(prompt)
    layers, networks = _layers(), sys.modules["networks"]
    start = time.perf_counter()
    extra_networks.activate(processed, data)
    for layer in layers:
        networks.network_apply_weights(layer)
    seconds = time.perf_counter() - start
    return {"prompt": prompt, "seconds": seconds, "copied": _copied(layers), "comments": list(processed.comments)}


def _grey(model, latents):
    count, _, height, width = latents.shape
    return torch.zeros(count, 3, 8 * height, 8 * width)


def _started(demo, app):
    @app.get("/probe/unet")
    def unet(path: str):
        with call_queue.queue_lock:
            weights = {f"diffusion_model.{name}": weight.detach().cpu().clone().contiguous()
                       for name, weight in _unet().named_parameters()}  # fmt: skip
            save_file(weights, path)
        return about()

    @app.get("/probe/about")
    def about():
        dtypes = sorted({str(weight.dtype) for weight in _unet().parameters()})
        return {"dtypes": dtypes, "torch": torch.__version__}

    @app.get("/probe/time")
    def timed(prompts: str):
        with call_queue.queue_lock, torch.no_grad():
            return [_timed(prompt) for prompt in prompts.split("|")]

    @app.get("/probe/forget")
    def forget():
        """Throw the copies away: the next network is the first one that this checkpoint sees."""
        with call_queue.queue_lock:
            for layer in _layers():
                for name in _COPIES:
                    if hasattr(layer, name):
                        setattr(layer, name, None)
        return {}


processing.decode_first_stage = _grey
script_callbacks.on_app_started(_started)
