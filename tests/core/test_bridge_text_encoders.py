"""A delta's part for text encoders on the encoders of a pipeline: transformers' own, told apart by names and shapes."""

from types import SimpleNamespace

import pytest
import torch

from sara_core import DeltaError, SparseDelta, SparseEntry
from sara_core.diffusers_bridge import load_delta
from tests.support.toy_models import changed, delta_entries

transformers = pytest.importorskip("transformers")

UNET = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
COMFYUI_UNET = "diffusion_model.input_blocks.2.1.transformer_blocks.0.attn1.to_q.weight"


def clip(width, kind=transformers.CLIPTextModel):
    config = transformers.CLIPTextConfig(vocab_size=99, hidden_size=width, intermediate_size=2 * width,
                                         num_hidden_layers=2, num_attention_heads=2)  # fmt: skip
    return kind(config)


def pipeline():
    unet = torch.nn.Linear(4, 4, bias=False)
    for name in reversed(UNET.split(".")):
        unet = torch.nn.ModuleDict({name: unet})
    second = clip(32, transformers.CLIPTextModelWithProjection)
    return SimpleNamespace(unet=unet, text_encoder=clip(16), text_encoder_2=second)


def entries_of(model, encoder):
    """By ComfyUI's names, whichever names this version of transformers has."""
    weights = {f"text_encoders.{encoder}.transformer.text_model.{name.removeprefix('text_model.')}": weight
               for name, weight in model.state_dict().items() if "layers" in name}  # fmt: skip
    return {name: SparseEntry(*entry) for name, entry in delta_entries(weights).items()}


def snapshot(pipe):
    return {f"{part}.{name}": weight.clone() for part, model in vars(pipe).items()
            for name, weight in model.state_dict().items()}  # fmt: skip


def test_every_part_is_changed_exactly_and_comes_back_with_one_handle():
    pipe = pipeline()
    before = snapshot(pipe)
    unet = SparseEntry(torch.tensor([3], dtype=torch.int32), torch.tensor([0.5]), (4, 4))
    text = {**entries_of(pipe.text_encoder, "clip_l"), **entries_of(pipe.text_encoder_2, "clip_g")}
    handle = load_delta(pipe, SparseDelta({COMFYUI_UNET: unet, **text}), strength=0.5)
    parts = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
    own = {f"unet.{UNET}.weight": unet}
    for name, entry in text.items():
        _, encoder, _, rest = name.split(".", 3)
        part = parts[encoder]
        own[f"{part}.{rest}" if f"{part}.{rest}" in before else f"{part}.{rest.removeprefix('text_model.')}"] = entry
    assert len(own) == len(text) + 1 and own.keys() <= before.keys()
    for name, weight in snapshot(pipe).items():
        expected = changed(before[name], own[name], 0.5) if name in own else before[name]
        assert torch.equal(weight, expected), name
    handle.remove()
    assert all(torch.equal(weight, before[name]) for name, weight in snapshot(pipe).items())


def test_what_the_pipeline_lacks_is_left_out_with_a_warning():
    pipe = pipeline()
    text = entries_of(pipe.text_encoder_2, "clip_g")
    pipe.text_encoder_2 = None
    unet = SparseEntry(torch.tensor([3], dtype=torch.int32), torch.tensor([0.5]), (4, 4))
    before = pipe.unet.state_dict()[f"{UNET}.weight"].clone()
    with pytest.warns(UserWarning, match="Left out: the change of CLIP-G"):
        load_delta(pipe, SparseDelta({COMFYUI_UNET: unet, **text}))
    assert torch.equal(pipe.unet.state_dict()[f"{UNET}.weight"], changed(before, unet, 1.0))


def test_text_encoders_alone_need_no_unet_that_fits():
    pipe = pipeline()
    before = snapshot(pipe)
    load_delta(pipe, SparseDelta(entries_of(pipe.text_encoder, "clip_l"))).remove()
    assert all(torch.equal(weight, before[name]) for name, weight in snapshot(pipe).items())
    with pytest.raises(DeltaError):
        load_delta(pipe, SparseDelta({COMFYUI_UNET.replace("to_q", "to_zz"): SparseEntry(
            torch.tensor([3], dtype=torch.int32), torch.tensor([0.5]), (4, 4))}))  # fmt: skip
