"""Text encoders in training: the gradient goes through the host's own encoding of the captions, and nothing stays."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from tests.nodes.training.test_session import assert_same_delta, cancelled, snapshots  # noqa: F401 (fixture)
from tests.support import text_encoders
from tests.support.toy_models import assert_same_bits, expected_weights, loaded_weights, unload
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
def test_what_is_asked_for_is_trained(comfy, pairs, family, what):
    model, clip = pairs(family)
    delta, _ = run(comfy, family, model, clip, what, density=2.0, steps=1)
    text = {name for name in delta.entries if name.startswith("text_encoders.clip_l.")}
    assert text and (what == BOTH) == any(name.startswith("diffusion_model.") for name in delta.entries)
    assert (family == "SDXL") == any(name.startswith("text_encoders.clip_g.") for name in delta.entries)
    assert json.loads(delta.metadata["sara.training"])["train"] == what
    changed = {name for name, entry in delta.entries.items() if entry.values.any()}
    assert any(".layers.0." in name for name in changed & text)


def test_the_delta_of_both_loads_into_model_and_clip(comfy, pairs):
    model, clip = pairs("SD1.5")
    delta, _ = run(comfy, "SD1.5", model, clip, BOTH)
    patched_model, patched_clip = comfy.execute(
        "SaRAApply", model=model, delta=delta, strength=1.0, clip=clip, strength_clip=1.0
    ).outputs
    base = {f"text_encoders.{name}": weight for name, weight in text_encoders.text_weights(clip).items()}
    base |= loaded_weights(model)
    now = {f"text_encoders.{name}": weight for name, weight in text_encoders.text_weights(patched_clip).items()}
    assert_same_bits(now | loaded_weights(patched_model), expected_weights(base, delta, 1.0))
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


def test_the_gradient_is_how_the_loss_changes(comfy, pairs):
    """Finite differences along the gradient, through Δ as a step writes it."""
    model, clip = pairs("SD1.5")
    isolation = comfy.pack_module("nodes.host.training.isolation")
    with torch.inference_mode(False), torch.enable_grad(), left_alone(model.model, clip.cond_stage_model):
        options = {"clip": clip, "trained": ("text_encoders",)}
        with isolation.training_model(model, {"density": 0.1}, (2, 4, 8, 8), **options) as training:
            store = training.store
            text_loss(comfy, "SD1.5", training, clip).backward()
            gradient = store.values.grad.clone()
            step = 0.05 * gradient / gradient.norm()
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    store.values.copy_(sign * step)
                    store.write()
                    losses.append(text_loss(comfy, "SD1.5", training, clip).double().item())
            with torch.no_grad():
                store.values.zero_()
                store.write()
    assert losses[0] - losses[1] == pytest.approx(2 * (step * gradient).sum().item(), rel=0.02)


def test_clip_skip_is_that_of_the_clip(comfy, pairs):
    model, clip = pairs("SD1.5")
    skipping = clip.clone()
    skipping.clip_layer(-2)
    delta, loss = run(comfy, "SD1.5", model, skipping, steps=1)
    assert {name.split(".layers.")[1][0] for name in delta.entries} == {"0", "1"}
    assert json.loads(delta.metadata["sara.training"])["clip_layer"] == -2
    assert loss != run(comfy, "SD1.5", model, clip, steps=1)[1]


def test_patterns_are_over_the_names_of_both(comfy, pairs):
    model, clip = pairs("SD1.5")
    only, _ = run(comfy, "SD1.5", model, clip, BOTH, steps=1, include="clip_l", exclude="mlp")
    assert only.entries and all(name.startswith("text_encoders.clip_l") for name in only.entries)
    assert not any(".mlp." in name for name in only.entries)
    with pytest.raises(Exception, match="None of the chosen weights has a part"):
        run(comfy, "SD1.5", model, clip, include="text_projection")


def test_biases_norms_and_embeddings_are_trained_too_where_they_are_asked_for(comfy, pairs):
    model, clip = pairs("SD1.5")
    delta, _ = run(comfy, "SD1.5", model, clip, layers="all layers, biases and norms", density=5.0)
    kinds = {name: entry.values.any() for name, entry in delta.entries.items()}
    for part in ("q_proj.bias", "layer_norm1.bias", "token_embedding.weight", "position_embedding.weight"):
        assert any(changed for name, changed in kinds.items() if name.endswith(part)), part
    assert not any("logit_scale" in name for name in kinds)


def test_dropped_captions_are_the_empty_one_encoded_anew(comfy, pairs):
    model, clip = pairs("SD1.5")
    data = images("SD1.5", clip)
    options = {"train": ENCODERS, "clip": clip, "caption_dropout": 1.0, "steps": 2}
    delta, losses = train(comfy, model, data, captions=TEXTS, **options)
    other, other_losses = train(comfy, model, data, captions=["something else"], **options)
    assert losses == other_losses
    assert_same_delta(delta, other)


def test_class_images_have_captions_of_their_own(comfy, pairs):
    model, clip = pairs("SD1.5")
    latents, captions = images("SD1.5", clip)
    options = {"class_latents": latents[:1], "class_positive": captions[:1], "steps": 1}
    of_class = [run(comfy, "SD1.5", model, clip, class_captions=[text], **options)[1] for text in ("a cat", "a dog")]
    alone = run(comfy, "SD1.5", model, clip, steps=1)[1]
    assert len({repr(loss) for loss in (*of_class, alone)}) == 3


def test_texts_can_be_kept_near_what_the_encoders_made_of_them_before(comfy, pairs):
    model, clip = pairs("SD1.5")
    _, captions = images("SD1.5", clip)
    options = {"class_positive": captions[:1], "class_captions": ["a cat"], "steps": 3, "learning_rate": 1e-2}
    some, much = (run(comfy, "SD1.5", model, clip, prior_weight=weight, **options) for weight in (0.0, 100.0))
    with pytest.raises(Exception, match="'class_captions' is not connected"):
        run(comfy, "SD1.5", model, clip, class_positive=captions[:1], steps=1)
    (first, *others), (same, *different) = some[1]["loss"], much[1]["loss"]
    assert first == same  # at first nothing has been left yet
    assert all(1.1 * one < other for one, other in zip(others, different))


def test_a_stopped_run_goes_on_exactly(comfy, pairs, snapshots):  # noqa: F811
    model, clip = pairs("SD1.5")
    data = images("SD1.5", clip)
    options = {"train": BOTH, "clip": clip, "captions": TEXTS, "steps": 4, "density": 2.0, "learning_rate": 1e-3}
    straight, straight_loss = train(comfy, model, data, **options)
    present = snapshots()
    with left_alone(model.model, clip.cond_stage_model):
        cancelled(comfy, model, data, 2, **options)
    snapshot, = set(snapshots()) - set(present)
    for change, named in (({"captions": TEXTS[::-1]}, "data"), ({"train": ENCODERS}, "train: diffusion model and")):
        with pytest.raises(Exception, match=f"not what they were then .*{named}"):
            train(comfy, model, data, **{**options, **change}, resume=snapshot.name)
    resumed, resumed_loss = train(comfy, model, data, **options, resume=snapshot.name)
    assert_same_delta(straight, resumed)
    assert straight_loss == resumed_loss


def test_an_error_in_an_encoder_leaves_everything_as_it_was(comfy, pairs, monkeypatch):
    from comfy import clip_model

    model, clip = pairs("SD1.5")
    calls, original = iter(range(1000)), clip_model.CLIPMLP.forward

    def fail_later(self, x):
        if next(calls) == 40:
            raise ZeroDivisionError("planted")
        return original(self, x)

    monkeypatch.setattr(clip_model.CLIPMLP, "forward", fail_later)
    with pytest.raises(ZeroDivisionError, match="planted"):
        run(comfy, "SD1.5", model, clip, BOTH, steps=50)


def test_the_memory_of_the_encoders_is_estimated(comfy, pairs, caplog):
    model, clip = pairs("SD1.5")
    caplog.set_level("INFO")
    run(comfy, "SD1.5", model, clip, BOTH, steps=1)
    assert "no estimate of the memory" not in caplog.text and "this training takes about" in caplog.text


@pytest.mark.parametrize("change, message", [
    ({"train": "diffusion model"}, "'clip' is connected, but no text encoder is trained: choose"),
    ({"clip": None}, "'clip' is not connected: text encoders are trained with"),
    ({"captions": []}, "'captions' is not connected"),
    ({"captions": ["one", "two", "three"]}, "2 images but 3 captions"),
    ({"captions": ["one", 2]}, "'captions' holds no texts"),
    ({"class_captions": ["a cat"]}, "'class_captions' is connected but 'class_positive' is not"),
    ({"samples": {}}, "captions of SaRA Train Samples are encoded before the training"),
])  # fmt: skip
def test_what_does_not_match_is_said(comfy, pairs, change, message):
    model, clip = pairs("SD1.5")
    data = images("SD1.5", clip)
    given = {"train": ENCODERS, "clip": clip, "captions": TEXTS, **change}
    with pytest.raises(Exception, match=message):
        train(comfy, model, data, **{name: value for name, value in given.items() if value is not None})


def test_a_clip_of_another_model_is_refused_before_the_first_step(comfy, pairs):
    model, clip = pairs("SD1.5")
    with pytest.raises(Exception, match="'clip' makes 768 numbers of a word, the captions of 'positive' have 32"):
        data = images("SD1.5", clip)[0], [[[torch.zeros(1, 77, 32), {}]]]
        train(comfy, model, data, train=ENCODERS, clip=clip, captions=TEXTS)


def test_other_text_encoders_are_refused_by_name(comfy):
    check = comfy.pack_module("nodes.host.training.text_encoders").check_trainable_clip
    names = {"clip_l.transformer.text_projection.weight": 0, "t5xxl.transformer.shared.weight": 0}
    flux = SimpleNamespace(patcher=SimpleNamespace(model_state_dict=lambda: names))
    with pytest.raises(Exception, match="has T5-XXL, which SaRA does not train: it trains CLIP-L and CLIP-G"):
        check(flux)


def test_a_clip_with_hooks_is_refused(comfy, pairs):
    model, clip = pairs("SD1.5")
    hooked = clip.clone()
    hooked.apply_hooks_to_conds = object()
    with pytest.raises(Exception, match="carries hooks"):
        run(comfy, "SD1.5", model, hooked)
