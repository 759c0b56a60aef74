"""Text encoders in training: the gradient goes through the host's own encoding of the captions, and nothing stays."""

import json
from contextlib import contextmanager

import pytest
import torch

from tests.support import text_encoders
from tests.support.toy_models import loaded_weights, unload
from tests.support.toy_training import denoising_loss, train

FAMILIES = ["SD1.5", "SDXL"]
TEXTS = ["a (red:1.3) fox", "the snow at night"]
BOTH, ENCODERS = "diffusion model and text encoders", "text encoders"
OPTIONS = {"SD1.5": {}, "SDXL": {"width": 640, "height": 512, "crop_w": 8, "crop_h": 0, "target_width": 640,
                                 "target_height": 512}}  # fmt: skip


@pytest.fixture(scope="module")
def pairs(comfy):
    """MODEL and CLIP of a family, made once."""
    made = {}

    def pair(family):
        if family not in made:
            with torch.inference_mode():  # as the host loads them inside a prompt
                tensors = text_encoders.checkpoint(family, options=text_encoders.WIDE)
                made[family] = text_encoders.loaded(tensors, text_encoders.WIDE)
        model, clip = made[family]
        loaded_weights(model), text_encoders.text_weights(clip)
        return made[family]

    yield pair
    unload()


@contextmanager
def left_alone(*modules):
    """Fails if what is done inside leaves a tensor, class or attribute of a module changed."""

    def state():
        parts = [part for module in modules for part in module.modules()]
        tensors = [tensor for part in parts for tensor in (*part._parameters.values(), *part._buffers.values())]
        return [(type(part), set(vars(part)), set(part._parameters)) for part in parts], tensors

    kinds, tensors = state()
    copies = [tensor if tensor is None else tensor.clone() for tensor in tensors]
    yield
    kinds_now, tensors_now = state()
    assert kinds_now == kinds
    for now, tensor, copy in zip(tensors_now, tensors, copies, strict=True):
        assert now is tensor and (now is None or torch.equal(now, copy))


def images(family, clip, count=2):
    """Latents, and captions encoded as the host's node encodes them."""
    generator = torch.Generator().manual_seed(1)
    latents = [{"samples": torch.randn(1, 4, 8, 8, generator=generator)} for _ in range(count)]
    with torch.inference_mode():
        return latents, [encoded(family, clip, text) for text in TEXTS[:count]]


def encoded(family, clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text), add_dict=OPTIONS[family])


def run(comfy, family, model, clip, train_what=ENCODERS, **settings):
    with left_alone(model.model, clip.cond_stage_model):
        return train(comfy, model, images(family, clip), train=train_what, clip=clip, captions=TEXTS, **settings)


@pytest.mark.parametrize("family, what", [("SD1.5", ENCODERS), ("SD1.5", BOTH), ("SDXL", BOTH)])
def test_what_is_asked_for_is_trained_and_loads_into_model_and_clip(comfy, pairs, family, what):
    model, clip = pairs(family)
    delta, losses = run(comfy, family, model, clip, what, density=2.0)
    text = {name for name in delta.entries if name.startswith("text_encoders.clip_l.")}
    assert text and (what == BOTH) == any(name.startswith("diffusion_model.") for name in delta.entries)
    assert (family == "SDXL") == any(name.startswith("text_encoders.clip_g.") for name in delta.entries)
    assert json.loads(delta.metadata["sara.training"])["train"] == what
    changed = {name for name, entry in delta.entries.items() if entry.values.any()}
    assert any(".layers.0." in name for name in changed & text)
    patched_model, patched_clip = comfy.execute(
        "SaRAApply", model=model, delta=delta, strength=1.0, clip=clip, strength_clip=1.0
    ).outputs
    base = text_encoders.text_weights(clip)
    now = text_encoders.text_weights(patched_clip)
    assert {f"text_encoders.{name}" for name in now if not torch.equal(now[name], base[name])} <= changed
    assert any(not torch.equal(now[name], base[name]) for name in now)
    unload()


@pytest.fixture(scope="module")
def of_the_host(comfy):
    """Family → the loss of its two images, and name → gradient, by plain autograd through the host's own layers."""
    from comfy import clip_model

    def layer(self, x, mask=None, optimized_attention=None):
        """What the host's computes, without writing over what autograd has saved."""
        x = x + self.self_attn(self.layer_norm1(x), mask, optimized_attention)
        return x + self.mlp(self.layer_norm2(x))

    def gradients(family):
        with torch.inference_mode(False), torch.enable_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(clip_model.CLIPLayer, "forward", layer)
            tensors = text_encoders.checkpoint(family, options=text_encoders.WIDE)
            model, clip = text_encoders.loaded(tensors, text_encoders.WIDE)
            modules = {"diffusion_model": model.model.diffusion_model, "text_encoders": clip.cond_stage_model}
            for module in modules.values():
                module.requires_grad_(True)
            loss = dense_loss(comfy, family, model, clip)
            loss.backward()
            return loss.item(), {
                f"{name}.{key}": parameter.grad
                for name, module in modules.items() for key, parameter in module.named_parameters()
            }

    return gradients


def dense_loss(comfy, family, model, clip):
    dataset = comfy.pack_module("nodes.host.training.dataset")
    given = []
    for latent, text in zip(images(family, clip)[0], TEXTS):
        (entry,) = encoded(family, clip, text)
        latent = model.model.process_latent_in(latent["samples"])
        given.append(dataset.HostSample(latent, dataset.conditions_of(model, latent, entry, 0, None, latent.device)))
    return denoising_loss(comfy, model, given, len(given))()


def text_loss(comfy, family, training, clip):
    """The node's own loss over the same images and draws."""
    pairing, text_samples = (comfy.pack_module(f"nodes.host.training.{name}") for name in ("pairing", "text_samples"))
    pairs = pairing.with_texts(pairing.pair(*images(family, clip)), TEXTS, "captions")
    samples = text_samples.prepare_texts(training.patcher, training.encoders, pairs)
    denoiser = comfy.pack_module("nodes.host.training.denoiser").Denoiser(training.patcher)
    network = text_samples.TextNetwork(denoiser, training.encoders, seed=0)
    return comfy.pack_module("sara_core.data.denoising_loss").DenoisingLoss(network, samples, len(samples), 0)()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_dense_ones(comfy, pairs, of_the_host, family):
    model, clip = pairs(family)
    expected_loss, dense = of_the_host(family)
    isolation = comfy.pack_module("nodes.host.training.isolation")
    with torch.inference_mode(False), torch.enable_grad(), left_alone(model.model, clip.cond_stage_model):
        options = {"clip": clip, "trained": ("diffusion_model", "text_encoders")}
        with isolation.training_model(model, {"density": 0.02}, (2, 4, 8, 8), **options) as training:
            loss = text_loss(comfy, family, training, clip)
            loss.backward()
            assert loss.item() == pytest.approx(expected_loss, rel=1e-6)
            assert any(segment.name.startswith("text_encoders.clip_l") for segment in training.store.support)
            for segment in training.store.support:
                expected = dense[segment.name].flatten()[segment.flat()]
                difference = (training.store.values.grad[segment.span] - expected).norm()
                assert difference <= 1e-5 * expected.norm(), segment.name
            trained = {segment.name for segment in training.store.support}
        reached = {name for name, gradient in dense.items() if gradient is not None and gradient.any()}
        linear = {name for name in reached if name.startswith("text_encoders.") and name.endswith("weight")
                  and "norm" not in name and "embedding" not in name}  # fmt: skip
        assert {name for name in trained if name.startswith("text_encoders.")} == linear
