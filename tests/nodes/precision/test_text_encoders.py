"""A delta on quantised text encoders, which other nodes call layer by layer: by weight functions, without rounding."""

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


@pytest.fixture(scope="module", params=["int8", "fp8 scaled"])
def clip(comfy, request):
    """A CLIP-L whose Linear layers are stored quantised, as the host makes it of such a file."""
    from comfy import sd1_clip
    from comfy.sd import CLIP

    store, stored = KINDS[request.param].store, {}
    for name, weight in text_encoders.text_state_dict("SD1.5").items():
        own = name.startswith("clip_l.transformer.")
        name = name.removeprefix("clip_l.transformer.")
        if ".encoder.layers." in name and weight.dim() == 2:
            stored |= store(name.removesuffix(".weight"), weight.bfloat16())
        elif own:
            stored[name] = weight
    target = SimpleNamespace(clip=sd1_clip.SD1ClipModel, tokenizer=sd1_clip.SD1Tokenizer, params={})
    quantised = {"quantization_metadata": {"mixed_ops": True}}  # as the host finds it in the file
    options = {**text_encoders.OPTIONS, "dtype": torch.float32, **quantised}
    with torch.inference_mode():  # as every node of the host runs
        clip = CLIP(target, state_dict=[stored], model_options=options)
    yield clip
    unload()


@pytest.fixture
def delta(comfy):
    pack = comfy.pack_module("sara_core.delta")
    shapes = {f"text_encoders.{LAYER.format(number)}.weight": torch.zeros(96, 64) for number in range(3)}
    entries = {name: pack.SparseEntry(*entry) for name, entry in delta_entries(shapes, density=0.05).items()}
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
    # Between two strengths: any weight function takes the place of a product with a rounded input, too.
    less, more = (outputs_of_layers(applied(comfy, clip, delta, sign * STRENGTH), x) for sign in (-1, 1))
    for one, other, entry in zip(less, more, delta.entries.values()):
        wanted = 2 * STRENGTH * x @ dense(entry).T
        assert is_whole(other - one, wanted)


def test_a_caption_is_encoded_otherwise_with_it_and_as_before_without(comfy, clip, delta):
    before = encoded(clip)
    with_it = encoded(applied(comfy, clip, delta, STRENGTH))
    assert not torch.equal(with_it, before)
    assert torch.equal(encoded(clip), before)
