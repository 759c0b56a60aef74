"""A delta on quantised text encoders, which other nodes call layer by layer: nothing of them is rounded anew."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from tests.support import text_encoders
from tests.support.quantised_effects import dense, is_whole
from tests.support.quantised_models import KINDS
from tests.support.toy_models import delta_entries, unload

STRENGTH = 0.7
LAYER = "clip_l.transformer.text_model.encoder.layers.{}.mlp.fc1"
TOKENS = [[49406, 320, 2368, 49407] + [49407] * 73]


@pytest.fixture(scope="module", params=["fp8 scaled", "mxfp8", "nvfp4", "int8", "int8 convrot", "convrot w4a4"])
def clip(comfy, request):
    yield made(request.param)
    with torch.inference_mode():
        unload()


def made(kind):
    """A CLIP-L whose Linear layers are stored quantised, as the host makes it of such a file."""
    from comfy import sd1_clip
    from comfy.sd import CLIP

    store, stored = KINDS[kind].store, {}
    for name, weight in text_encoders.text_state_dict("SD1.5").items():
        own = name.startswith("clip_l.transformer.")
        name = name.removeprefix("clip_l.transformer.")
        if ".encoder.layers." in name and weight.dim() == 2 and weight.shape[1] % 64 == 0:
            stored |= store(name.removesuffix(".weight"), weight.bfloat16())
        elif own:
            stored[name] = weight
    target = SimpleNamespace(clip=sd1_clip.SD1ClipModel, tokenizer=sd1_clip.SD1Tokenizer, params={})
    quantised = {"quantization_metadata": {"mixed_ops": True}}  # as the host finds it in the file
    options = {**text_encoders.OPTIONS, "dtype": torch.float32, **quantised}
    with torch.inference_mode():  # as every node of the host runs
        return CLIP(target, state_dict=[stored], model_options=options)


@pytest.fixture
def delta(comfy):
    pack = comfy.pack_module("sara_core.delta")
    shapes = {f"text_encoders.{LAYER.format(number)}.weight": torch.zeros(96, 64) for number in range(3)}
    entries = {name: pack.SparseEntry(*entry) for name, entry in delta_entries(shapes, density=0.05).items()}
    bias = f"text_encoders.{LAYER.format(0)}.bias"
    entries[bias] = pack.SparseEntry(*delta_entries({bias: torch.zeros(96)}, density=0.5)[bias])
    return pack.SparseDelta(entries, {"sara.family": "SD1.5"})


def encoded(clip):
    with torch.inference_mode():
        return clip.encode_from_tokens({"l": [[(token, 1.0) for token in TOKENS[0]]]})


def outputs_of_layers(clip, x):
    """What the layers make of an input, each called by itself, as the host has loaded the CLIP."""
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([clip.patcher], force_full_load=True)
        model = clip.cond_stage_model
        return [model.get_submodule(LAYER.format(number))(x) for number in range(3)]


def applied(comfy, clip, delta, strength):
    said = []
    patched = comfy.pack_module("nodes.host.text_encoders").patch_clip(clip, delta, strength, said.append)
    assert len(said) == 1 and "CLIP" in said[0]  # what saves models does not see it
    return patched


def test_the_whole_change_arrives_in_quantised_layers_of_a_clip(comfy, clip, delta):
    assert comfy.pack_module("nodes.host.precision").precision_of(
        clip.cond_stage_model.get_submodule(LAYER.format(0)).weight
    )
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(5))
    before, after = outputs_of_layers(clip, x), outputs_of_layers(applied(comfy, clip, delta, STRENGTH), x)
    for one, other, wanted in zip(before, after, wanted_of(delta, x)):
        assert is_whole(other - one, STRENGTH * wanted)


def wanted_of(delta, x):
    """What Δ adds to the outputs of the layers for an input."""
    wanted = [x @ dense(delta.entries[f"text_encoders.{LAYER.format(number)}.weight"]).T for number in range(3)]
    wanted[0] = wanted[0] + dense(delta.entries[f"text_encoders.{LAYER.format(0)}.bias"])
    return wanted


def test_with_a_change_of_nothing_every_bit_of_a_caption_is_as_without(comfy, clip, delta):
    before = encoded(clip)
    assert torch.equal(encoded(applied(comfy, clip, 0.0 * delta, STRENGTH)), before)


@pytest.mark.parametrize("clip", ["int8", "int8 convrot"], indirect=True)
def test_who_calls_the_layers_otherwise_has_the_change_by_weight_functions(comfy, clip, delta):
    """A training, whose layers have forwards of their own."""
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(7))
    with_added_weights = comfy.pack_module("nodes.host.quantised_layers").with_added_weights
    has_any = comfy.pack_module("nodes.host.own_forwards").has_any
    assert with_added_weights(clip.patcher) is clip.patcher
    outputs = []
    for strength in (-STRENGTH, STRENGTH):
        patched = applied(comfy, clip, delta, strength)
        functions = with_added_weights(patched.patcher)
        assert [has_any(patcher) for patcher in (patched.patcher, functions)] == [True, False]
        patched.patcher = functions
        outputs.append(outputs_of_layers(patched, x))
    for one, other, wanted in zip(*outputs, wanted_of(delta, x)):
        assert is_whole(other - one, 2 * STRENGTH * wanted)


@pytest.mark.parametrize("clip", ["int8"], indirect=True)
def test_a_clone_with_a_model_of_its_own_has_the_change_in_its_own_layers(comfy, clip, delta):
    """As the host's nodes for hooks and torch.compile make one."""
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(8))
    before = outputs_of_layers(clip, x)
    patched = applied(comfy, applied(comfy, clip, delta, STRENGTH), delta, STRENGTH)
    if "model_override" not in inspect.signature(patched.patcher.clone).parameters:
        pytest.skip("this ComfyUI clones no models")
    other = patched.clone()
    with torch.inference_mode():
        other.cond_stage_model = made("int8").patcher.model
        other.patcher = patched.patcher.clone(model_override=(other.cond_stage_model, ({}, {}, {}, set())))
        for number in range(3):
            clip.cond_stage_model.get_submodule(LAYER.format(number)).bias.add_(100.0)
        found = outputs_of_layers(other, x)
        for number in range(3):
            clip.cond_stage_model.get_submodule(LAYER.format(number)).bias.add_(-100.0)
    for one, two, wanted in zip(before, found, wanted_of(delta, x)):
        assert is_whole(two - one, 2 * STRENGTH * wanted)


def test_two_deltas_on_one_clip_add_up(comfy, clip, delta):
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(6))
    both = applied(comfy, applied(comfy, clip, delta, STRENGTH), delta, -3.0)
    for one, other, wanted in zip(outputs_of_layers(clip, x), outputs_of_layers(both, x), wanted_of(delta, x)):
        assert is_whole(other - one, (STRENGTH - 3.0) * wanted)


def test_a_caption_is_encoded_otherwise_with_it_and_as_before_without(comfy, clip, delta):
    before = encoded(clip)
    with_it = encoded(applied(comfy, clip, delta, STRENGTH))
    assert not torch.equal(with_it, before)
    assert torch.equal(encoded(clip), before)
