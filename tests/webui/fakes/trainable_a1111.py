"""What the fake of AUTOMATIC1111's WebUI has beside, to train: a UNet that computes by the attention that is chosen,
and the modules by which it is reached.

    with running(folder) as webui:
        training = trainable(webui)      # a training.host.TrainingHost
"""

import importlib
from contextlib import nullcontext
from types import SimpleNamespace

import torch

from .stand_ins import module
from .trainable import (
    SIGMAS, PlainBlock, UNet, attention_pytorch, attention_without_gradient, condition_of, install, install_common,
)  # fmt: skip

_EMBEDDING = "transformer.text_model.embeddings.token_embedding"


class _Optimizations:
    """sd_hijack and sd_hijack_optimizations: which attention the UNet computes with, and what tiles its pictures."""

    def __init__(self):
        self.attention, self.is_circular = attention_without_gradient, False

    def apply_optimizations(self, option=None):
        self.attention = attention_without_gradient

    def undo_optimizations(self):
        self.attention = _hosts_first

    def apply_circular(self, enable):
        self.is_circular = enable

    def sdp(self):
        return SimpleNamespace(apply=lambda: setattr(self, "attention", attention_pytorch))


def _hosts_first(q, k, v, heads, mask=None):
    raise AssertionError("the attention that needs the most memory")


class _Block(PlainBlock):
    def forward(self, x, context=None):
        return x + self._attended(x, context, self.attention())


def trainable(webui):
    """Draws a picture, so that there is a model, and makes each one that is loaded compute. Returns the host as
    training has it."""
    install_common(webui)
    webui.optimizations = chosen = _Optimizations()
    webui.devices = module(
        "modules.devices", fp8=False, device=torch.device("cpu"), dtype_unet=webui.dtype, dtype_vae=webui.dtype,
        autocast=nullcontext,
    )  # fmt: skip
    install(
        webui.devices,
        module("modules.sd_hijack", model_hijack=chosen, undo_optimizations=chosen.undo_optimizations),
        module("modules.sd_hijack_optimizations", SdOptimizationSdp=chosen.sdp),
        module("modules.sd_unet", apply_unet=lambda option=None: None),
    )
    webui.shared.loaded_hypernetworks = []
    webui.shared.__getattr__ = lambda name: _shared(webui, name)
    load = webui.sd_models.load_model_weights

    def loaded(model, *given):
        load(model, *given)
        _make_compute(model, chosen)

    webui.sd_models.load_model_weights = loaded
    webui.draw("")
    _make_compute(webui.model, chosen)
    return importlib.import_module("sara_webui.training.hosts").runner().host


def _shared(webui, name):
    if name != "sd_model":
        raise AttributeError(name)
    if webui.model is None:
        webui.sd_models.reload_model_weights()
    return webui.model


def _make_compute(model, chosen):
    unet = model.model.diffusion_model
    unet.__class__ = UNet
    block = unet.get_submodule("input_blocks.1.1.transformer_blocks.0")
    block.__class__ = type("BasicTransformerBlock", (_Block,), {"attention": lambda self: chosen.attention})
    model.model.conditioning_key, model.parameterization, model.lowvram = "crossattn", "eps", False
    model.alphas_cumprod_original = 1 / (1 + SIGMAS.square())
    model.get_learned_conditioning = lambda given: _encoded(model, given)
    model.apply_model = lambda noisy, timesteps, told: unet(noisy, timesteps, told["c_crossattn"][0])


def _encoded(model, given):
    embedding = model.cond_stage_model.wrapped.get_submodule(_EMBEDDING).weight
    return torch.stack([condition_of(caption, embedding) for caption in given])
