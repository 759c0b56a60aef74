"""Put among a WebUI's extensions while it is measured: its UNet's weights as a file, digests of its tensors, what its
networks take, and the lines below its pictures. These show the latents: a VAE in fp16 takes minutes on a CPU.

Runs in the WebUI's process, and is never part of what is installed.
"""

import hashlib
import sys
import time

import torch
from modules import call_queue, extra_networks, processing, script_callbacks, sd_models
from safetensors.torch import save_file

_HOOKED = torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm, torch.nn.MultiheadAttention
_COPIES = "network_weights_backup", "network_bias_backup"


def _model():
    return sd_models.model_data.sd_model


def _unet():
    model = _model()
    if hasattr(model, "unet"):  # a pipeline of diffusers'
        return model.unet
    # Forge and those that came of it have the networks of their models beside each other.
    parts = getattr(model, "forge_objects_original", None)
    return (model.model if parts is None else parts.unet.model).diffusion_model


def _layers():
    return [layer for layer in _model().network_layer_mapping.values()
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


def _shown(model, latents):
    """Another picture for other latents, as large as the VAE's."""
    return torch.nn.functional.interpolate(latents[:, :3].float().tanh(), scale_factor=8)


def _tensors():
    """(name, tensor) of UNet, text encoder and VAE, buffers too."""
    model = _model()
    parts = getattr(model, "forge_objects_original", None)
    if parts is not None:
        modules = {"unet": parts.unet.model, "clip": parts.clip.cond_stage_model, "vae": parts.vae.first_stage_model}
    elif hasattr(model, "unet"):
        modules = {"unet": model.unet, "clip": model.text_encoder, "vae": model.vae}
    else:
        return model.state_dict().items()
    return [(f"{part}.{name}", tensor) for part, one in modules.items() for name, tensor in one.state_dict().items()]


def _digests(tensors):
    found = {}
    for name, tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found[name] = f"{flat.dtype} {hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()}"
    return found


def _unet_digests():
    return _digests(_unet().named_parameters())


def _note_how_trainings_end():
    """What the UNet is at the moment before a training puts the base back."""
    store = next((module for name, module in sys.modules.items() if name.endswith("sara_core.backward.store")), None)
    if store is None or hasattr(store.Store, "probed"):
        return
    restore = store.Store.restore

    def noting(self):
        _ended["with"] = _unet_digests()
        restore(self)

    store.Store.restore, store.Store.probed = noting, True


_ended = {"with": {}}
_passes, _noting = [], []


def _note_pass(*_):
    every = "".join(f"{name} {digest}" for name, digest in sorted(_unet_digests().items()))
    _passes.append(hashlib.sha256(every.encode()).hexdigest()[:16])


def _comment(self, text):
    _comments.append(str(text))
    _hosts_comment(self, text)


_comments = []
_hosts_comment = processing.StableDiffusionProcessing.comment
processing.StableDiffusionProcessing.comment = _comment


def _started(demo, app):
    @app.get("/probe/unet")
    def unet(path: str):
        with call_queue.queue_lock:
            weights = {f"diffusion_model.{name}": weight.detach().cpu().clone().contiguous()
                       for name, weight in _unet().named_parameters()}  # fmt: skip
            save_file(weights, path)
        return about()

    @app.get("/probe/digests")
    def digests():
        with call_queue.queue_lock:
            _note_how_trainings_end()
            return {"model": _digests(_tensors()), "unet": _unet_digests(), "ended with": _ended["with"]}

    @app.get("/probe/passes")
    def passes(noting: bool):
        """What the UNet was at each of its forwards since this was asked with noting on."""
        with call_queue.queue_lock:
            while _noting:
                _noting.pop().remove()
            found = list(_passes)
            _passes.clear()
            if noting:
                _noting.append(_unet().register_forward_pre_hook(_note_pass))
        return found

    @app.get("/probe/lines")
    def lines():
        found = list(_comments)
        _comments.clear()
        return found

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


processing.decode_first_stage = _shown
script_callbacks.on_app_started(_started)
