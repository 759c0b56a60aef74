"""What SD.Next's fake has beside, to train: a pipeline of diffusers as the host holds it, with what it puts into one,
and the modules by which it moves models.

    with sdnext_running(folder) as webui:
        training = trainable(webui, pipeline)      # a training.host.TrainingHost
"""

import copy
import functools
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import nn

from .stand_ins import module

_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


class _State:
    """As the host's: whatever begins forgets that it was to be interrupted."""

    interrupted, job, sampling_step, sampling_steps = False, "", 0, 0

    def begin(self, title="", task_id=0, api=None):
        self.interrupted, self.job = False, title
        return 1

    def end(self, task_id=None, api=None):
        self.job = ""


class _AttentionWithoutGradient:
    def __call__(self, attn, hidden_states, *args, **kwargs):
        assert not torch.is_grad_enabled(), "an attention that has no gradient"
        return hidden_states


class SDNextOffload:
    """modules.sd_models' part of it; hooks are on the parts' forward, and move models, as none may in a training."""

    def __init__(self, webui):
        self.webui, self.seen, self.moved = webui, None, []

    def apply(self, pipeline, force=False):
        if self.seen is pipeline and not force:
            return pipeline
        self.seen = pipeline
        for part in self._parts(pipeline):
            if not hasattr(part, "_hf_hook"):
                part._hf_hook, part.forward = object(), functools.partial(self._hooked, part.forward)
        pipeline.has_accelerate = True
        return pipeline

    def _hooked(self, forward, *args, **kwargs):
        assert not torch.is_grad_enabled(), "a hook that moves the model"
        return forward(*args, **kwargs)

    def disable_offload(self, pipeline):
        if getattr(pipeline, "has_accelerate", False):
            for part in self._parts(pipeline):
                del part._hf_hook, part.forward
            pipeline.has_accelerate = False

    def set_diffuser_offload(self, pipeline, op="model", quiet=False, force=False):
        if self.webui.shared.opts.diffusers_offload_mode == "balanced":
            self.apply(pipeline, force)

    def move_model(self, model, device=None, force=False):
        if not getattr(model, "has_accelerate", False) or force:
            self.moved.append(device)

    def _parts(self, pipeline):
        return [part for name in _PARTS if isinstance(part := getattr(pipeline, name, None), nn.Module)]


def _instead(webui, offload, job, original):
    """What the host puts in place of methods of diffusers': it moves models, and says nothing of an error."""

    def hijacked(*args, **kwargs):
        webui.shared.state.begin(job)
        offload.apply(webui.model, force=True)
        try:
            return original(*args, **kwargs)
        except Exception:
            return None
        finally:
            webui.shared.state.end()

    return hijacked


def _hijack(webui, offload, owner, name):
    setattr(owner, f"orig_{name}", getattr(owner, name))
    setattr(owner, name, _instead(webui, offload, name, getattr(owner, name)))


def _devices():
    original = nn.functional.scaled_dot_product_attention

    @contextmanager
    def bypass_sdpa_hijacks():
        current = nn.functional.scaled_dot_product_attention
        nn.functional.scaled_dot_product_attention = original
        try:
            yield
        finally:
            nn.functional.scaled_dot_product_attention = current

    return module(
        "modules.devices", device=torch.device("cpu"), inference_context=torch.no_grad,
        bypass_sdpa_hijacks=bypass_sdpa_hijacks,
    )  # fmt: skip


def _model_type(pipeline):
    name = type(pipeline).__name__
    return "sdxl" if "StableDiffusionXL" in name else "sd" if "StableDiffusion" in name else name


def trainable(webui, pipeline, mode="balanced"):
    """Makes a pipeline the model that is loaded, as the host leaves one after a picture. Returns the host as training
    has it."""
    webui.shared.opts.diffusers_offload_mode, webui.shared.state = mode, _State()
    webui.offload = offload = SDNextOffload(webui)
    for name in ("disable_offload", "set_diffuser_offload", "move_model"):
        setattr(webui.sd_models, name, getattr(offload, name))
    sys.modules["modules.modeldata"].get_model_type = _model_type
    sys.modules["modules.paths"].data_path = str(webui.folder)
    made = (
        module("modules.call_queue", queue_lock=threading.Lock()), module("modules.paths_internal"), _devices(),
        module("modules.lora"), module("modules.lora.lora_common", previously_loaded_networks=[]),
    )  # fmt: skip
    for one in made:
        sys.modules[one.__name__] = one
        parent, _, last = one.__name__.rpartition(".")
        setattr(sys.modules[parent], last, one)
    webui.model = pipeline
    pipeline.sd_checkpoint_info = SimpleNamespace(filename="one.safetensors", title="one")
    pipeline.default_scheduler = copy.deepcopy(pipeline.scheduler)
    pipeline.scheduler = None  # another one for each picture
    pipeline.has_accelerate = False
    pipeline.unet.set_attn_processor(_AttentionWithoutGradient())
    pipeline.unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    for owner, name in ((pipeline, "encode_prompt"), (pipeline.vae, "encode"), (pipeline.vae, "decode")):
        _hijack(webui, offload, owner, name)
    offload.set_diffuser_offload(pipeline)
    from sara_webui.training import hosts

    return hosts.runner().host
