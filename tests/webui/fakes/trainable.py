"""What the fakes of Forge and its kin have beside, to train: a UNet that computes, made of the host's own classes,
which have no gradient and add into their inputs; encoders; and the modules by which all of it is reached.

    with forge_running(folder, Classic()) as webui:
        training = trainable(webui)      # a training.host.TrainingHost
"""

import hashlib
import importlib
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch import nn

from .models import unet
from .stand_ins import module

SIDE = 8
_LAYERS = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
_EMBEDDING = "clip_l.transformer.text_model.embeddings.token_embedding"
_SIGNAL = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square().neg().add(1).cumprod(0)
SIGMAS = ((1 - _SIGNAL) / _SIGNAL).sqrt()


def latent_of(image):
    """image: [1, 3, height, width], 0 … 1"""
    small = nn.functional.avg_pool2d(image, SIDE)
    return torch.cat([small, small.mean(1, keepdim=True)], 1) * 2 - 1


def condition_of(caption, embedding):
    """embedding: weight of the text encoder's, of which the caption's tokens are rows"""
    digest = hashlib.sha256(caption.encode()).digest()
    return embedding[torch.tensor([byte % len(embedding) for byte in digest[:6]])]


def attention_pytorch(q, k, v, heads, mask=None):
    return nn.functional.scaled_dot_product_attention(q, k, v)


def attention_without_gradient(q, k, v, heads, mask=None):
    assert not torch.is_grad_enabled(), "an attention that has no gradient"
    return attention_pytorch(q, k, v, heads)


class UNet(nn.Module):
    def forward(self, x, timesteps, context, transformer_options=None, y=None):
        x = self.get_submodule("input_blocks.0.0")(x) + timesteps.float().view(-1, 1, 1, 1) / 1000
        transformer = self.get_submodule("input_blocks.1.1")
        tokens = transformer.norm(x).flatten(2).transpose(1, 2)
        tokens = transformer.get_submodule("transformer_blocks.0")(tokens, context=context)
        return self.get_submodule("out.2")(x + tokens.transpose(1, 2).reshape(x.shape))


class PlainBlock(nn.Module):
    def _attended(self, x, context, attention):
        return attention(self.attn1.to_q(self.norm1(x)), context, self.attn1.to_v(context), 1)

    def forward(self, x, context=None):
        return x + self._attended(x, context, attention_pytorch)


class BasicTransformerBlock(PlainBlock):
    """As the hosts', it adds into what it was given, and looks its attention up by name."""

    def forward(self, x, context=None):
        x += self._attended(x, context, self.attention())
        return x


def plain_unet(state):
    """The same UNet without a host: what its training must give. state: name in a checkpoint → weight"""
    model = unet()
    model.load_state_dict({name: state[f"model.{name}"] for name in model.state_dict()})
    made = model.diffusion_model
    made.__class__ = UNet
    made.get_submodule("input_blocks.1.1.transformer_blocks.0").__class__ = PlainBlock
    return made


def _hosts_layer(kind, operations):
    def forward(self, *given):
        assert not torch.is_grad_enabled(), "the host's way to its weights"
        return kind.forward(self, *given)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": operations})


def _make_compute(model, attention, operations):
    kinds = {kind: _hosts_layer(kind, operations) for kind in _LAYERS}
    for layer in model.modules():
        layer.__class__ = kinds.get(type(layer), type(layer))
    model.diffusion_model.__class__ = UNet
    block = model.diffusion_model.get_submodule("input_blocks.1.1.transformer_blocks.0")
    block.__class__ = type("BasicTransformerBlock", (BasicTransformerBlock,), {"attention": lambda self: attention()})


class SdConditioning(list):
    def __init__(self, prompts, is_negative_prompt=False, width=None, height=None, copy_from=None):
        super().__init__(prompts)
        self.width, self.height = width, height


class _State:
    interrupted, sampling_step, sampling_steps = False, 0, 0

    def begin(self, job="(unknown)"):
        self.interrupted, self.job = False, job

    def end(self):
        self.job = ""


class _Discrete(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("sigmas", SIGMAS.clone())


class _Eps:
    pass


class _V(_Eps):
    pass


class _Edm(_V):
    pass


def install(*modules):
    """Make modules importable beneath their parents."""
    for made in modules:
        sys.modules[made.__name__] = made
        parent, _, last = made.__name__.rpartition(".")
        setattr(sys.modules[parent], last, made)


def trainable(webui, prediction=_Eps):
    """Draws a picture, so that there is a model, and makes one of it that trains. Returns the host as training has it.

    prediction: of the older ones, what the host has mixed into the noise levels
    """
    install_common(webui)
    webui.draw("")
    is_older = webui.rules.name in ("reForge", "Forge classic")
    make = (_older if is_older else _newer)(webui, prediction)
    reload = webui.reload_model_weights

    def reloaded(*given):
        before = webui.model
        reload(*given)
        if webui.model is not before:
            _made_to_compute(webui, make)

    webui.reload_model_weights = reloaded
    # What the older ones call it, and the newer ones.
    webui.sd_models.reload_model_weights = webui.sd_models.forge_model_reload = reloaded
    _made_to_compute(webui, make)
    return importlib.import_module("sara_webui.training.hosts").runner().host


def install_common(webui):
    """The modules that are the same in all of AUTOMATIC1111's kin."""
    webui.shared.opts = SimpleNamespace(CLIP_stop_at_last_layers=1, emphasis="Original", lora_functional=False)
    webui.shared.state = _State()
    install(
        module("modules.call_queue", queue_lock=nullcontext()),
        module("modules.paths_internal", default_output_dir=str(webui.folder / "outputs")),
        module("modules.prompt_parser", SdConditioning=SdConditioning),
        module(
            "modules.sd_samplers_common",
            images_tensor_to_samples=lambda image, approximation=None, model=None: latent_of(image),
            samples_to_images_tensor=lambda sample, approximation=None, model=None: sample[:, :3],
        ),
    )
    sys.modules["modules.paths"].data_path = str(webui.folder)


def _made_to_compute(webui, make):
    engine = webui.model
    for patcher in webui.both_patchers():
        patcher.load_device = torch.device("cpu")
    make(engine, engine.forge_objects_original.unet.model)
    engine.get_learned_conditioning = lambda given: _encoded(engine, given)


def _encoded(engine, given):
    engine.forge_objects.clip.patcher.load()  # a model is brought where it computes, before it does
    embedding = engine.forge_objects.clip.cond_stage_model.get_submodule(_EMBEDDING).weight
    return torch.stack([condition_of(caption, embedding) for caption in given])


def _older(webui, prediction):
    attention = module(
        "ldm_patched.ldm.modules.attention", attention_pytorch=attention_pytorch,
        optimized_attention=attention_without_gradient, optimized_attention_masked=attention_without_gradient,
    )  # fmt: skip
    sampling = module(
        "ldm_patched.modules.model_sampling", ModelSamplingDiscrete=_Discrete, EPS=_Eps, V_PREDICTION=_V, EDM=_Edm
    )
    install(module("ldm_patched.ldm"), module("ldm_patched.ldm.modules"), attention, sampling)

    def make(engine, kmodel):
        kmodel.model_sampling = type("ModelSampling", (_Discrete, prediction), {})()
        kmodel.manual_cast_dtype, kmodel.get_dtype = None, lambda: webui.dtype
        _make_compute(kmodel, lambda: attention.optimized_attention, "ldm_patched.modules.ops")

    return make


def _newer(webui, prediction):
    attention = module("backend.attention", attention_pytorch=attention_pytorch)
    of_unet = module("backend.nn.unet", attention_function=attention_without_gradient)
    install(module("backend.nn"), of_unet, attention)

    def make(engine, kmodel):
        kmodel.predictor = SimpleNamespace(sigmas=SIGMAS.clone(), prediction_type="epsilon")
        kmodel.storage_dtype = kmodel.computation_dtype = webui.dtype
        engine.set_clip_skip = lambda skip: None
        _make_compute(kmodel, lambda: of_unet.attention_function, "backend.operations")

    return make
