"""Which parameters patterns and presets let through, and what they say when they match nothing."""

import re

import pytest
import torch
from torch import nn

from sara_core import SelectionError
from sara_core.backward.attach import layers
from sara_core.names.patterns import PRESETS, Choice, NamedParameter, Patterns, split_patterns
from sara_core.selection.trainable import trainable_weights
from tests.support.family_models import FAMILIES, SD21_LAYOUT
from tests.support.small_models import small_net

# What the host makes of Stable Video Diffusion, with one level.
VIDEO_LAYOUT = {
    **SD21_LAYOUT,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [0, 0],
    "use_temporal_resblock": True,
    "use_temporal_attention": True,
    "extra_ff_mix_layer": True,
    "use_spatial_context": True,
    "merge_strategy": "learned_with_images",
    "merge_factor": 0.0,
    "video_kernel_size": [3, 1, 1],
}


def weight(name):
    return NamedParameter(name, "weight", 0)


@pytest.mark.parametrize("include, exclude, expected", [
    ([], [], True),
    (["attn"], [], True),
    (["conv"], [], False),
    (["conv", "attn"], [], True),
    ([], ["attn"], False),
    (["attn"], ["to_q"], False),
    (["*.to_q.weight"], [], True),
    (["to_q*"], [], False),  # a glob must match the whole name
    (["blocks.?.attn.*"], [], True),
    (["blocks.??.attn.*"], [], False),
    (["blocks.[12].*"], [], True),
    (["BLOCKS"], [], False),
    ([], ["*.bias"], True),
    (["!attn"], [], False),
    (["!conv"], [], True),
    (["blocks", "!to_q"], [], False),
    (["blocks", "! *.to_k.*"], [], True),
    ("conv, attn", "", True),
    ("conv, attn, !to_q", "", False),
    ("", "conv, to_q", False),
    (" , ", ",", True),
])  # fmt: skip
def test_patterns(include, exclude, expected):
    name = weight("blocks.1.attn.to_q.weight")
    assert Choice(include, exclude).takes([name]) is expected
    if not isinstance(include, str):
        assert Choice(iter(include), iter(exclude)).takes(iter([name])) is expected


def test_a_text_of_patterns_is_a_list_of_them():
    assert split_patterns(" attn2,*temporal* , ,!norm") == ("attn2", "*temporal*", "!norm")
    assert split_patterns(["a, b", " c "]) == ("a, b", "c")
    assert Patterns.of("attn2, !norm", "!x") == Patterns(("attn2",), ("!x", "norm"))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.norm_q = nn.Linear(4, 4), nn.RMSNorm(4)


class Block(nn.Module):
    """Names as in the models of the host, with a norm that is not called so."""

    def __init__(self):
        super().__init__()
        self.attn2, self.norm2 = Attention(), nn.LayerNorm(4)
        self.in_layers = nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1))
        self.modulation, self.attn_norm = nn.Parameter(torch.zeros(6, 4)), nn.LayerNorm(4, bias=False)
        self.label_emb = nn.Embedding(3, 4)


LAYERS = ["attn2.to_q.weight", "in_layers.1.weight"]


@pytest.mark.parametrize("include, expected", [
    ("", LAYERS),
    ("*", LAYERS),
    ("weight", LAYERS),
    ("*.weight", LAYERS),
    ("attn2", ["attn2.to_q.weight"]),
    ("attn2.", ["attn2.to_q.weight"]),
    ("*attn2*.weight", ["attn2.to_q.weight"]),
    ("to_q", ["attn2.to_q.weight"]),
    ("in_layers", ["in_layers.1.weight"]),
    ("bias", ["attn2.to_q.bias", "in_layers.0.bias", "in_layers.1.bias", "norm2.bias"]),
    ("*.bias", ["attn2.to_q.bias", "in_layers.0.bias", "in_layers.1.bias", "norm2.bias"]),
    ("*attn2*bias", ["attn2.to_q.bias"]),
    ("to_q.bias", ["attn2.to_q.bias"]),
    ("norm", ["attn2.norm_q.weight", "attn_norm.weight", "in_layers.0.bias", "in_layers.0.weight", "norm2.bias",
              "norm2.weight"]),
    ("*norm*", ["attn2.norm_q.weight", "attn_norm.weight", "norm2.bias", "norm2.weight"]),
    ("*norm*.weight", ["attn2.norm_q.weight", "attn_norm.weight", "norm2.weight"]),
    ("norm2", ["norm2.bias", "norm2.weight"]),
    ("norm_q.weight", ["attn2.norm_q.weight"]),
    ("in_layers.0", ["in_layers.0.bias", "in_layers.0.weight"]),
    ("modulation", ["modulation"]),
    ("parameter", ["modulation"]),
    ("embedding", ["label_emb.weight"]),
    ("label_emb", ["label_emb.weight"]),
    ("attn2, bias, !norm", ["attn2.to_q.bias", "attn2.to_q.weight", "in_layers.1.bias"]),
    ("bias, !attn2", ["in_layers.0.bias", "in_layers.1.bias", "norm2.bias"]),
    ("attn2.to_q.weight, norm2.bias", ["attn2.to_q.weight", "norm2.bias"]),
])  # fmt: skip
def test_what_is_no_layers_weight_is_trained_only_where_a_pattern_names_it(include, expected):
    assert sorted(trainable_weights(Block(), include)) == expected
    assert sorted(trainable_weights(Block(), include.split(", "))) == expected


def test_names_are_told_apart_with_a_prefix_too():
    whole = nn.ModuleDict({"diffusion_model": Block()})
    named = trainable_weights(whole, "norm2, *attn2*bias")
    assert list(named) == ["diffusion_model.attn2.to_q.bias", "diffusion_model.norm2.weight",
                           "diffusion_model.norm2.bias"]  # fmt: skip
    assert list(trainable_weights(whole, "diffusion_model.mod*")) == [
        "diffusion_model.modulation"
    ]


def test_a_preset_and_patterns_must_both_let_a_parameter_pass():
    attention = ["attn2.to_q.weight"]
    assert list(trainable_weights(Block(), preset="attention only")) == attention
    assert list(trainable_weights(Block(), "bias, *", preset="attention only")) == ["attn2.to_q.weight",
                                                                                     "attn2.to_q.bias"]  # fmt: skip
    assert list(trainable_weights(Block(), "!to_q", preset="attention only")) == []
    assert len(trainable_weights(Block(), preset="all layers, biases and norms")) == len(list(Block().parameters()))
    assert list(trainable_weights(Block(), "norm_q", preset="attention only")) == ["attn2.norm_q.weight"]
    assert sorted(trainable_weights(Block(), "!norm", preset="all layers, biases and norms")) == sorted(
        [*LAYERS, "attn2.to_q.bias", "in_layers.1.bias", "label_emb.weight", "modulation"]
    )


@pytest.mark.parametrize("field", ["include", "exclude"])
@pytest.mark.parametrize("pattern", ["atn2", "*.to_q", "!atn2", "Bias"])
def test_a_pattern_that_matches_nothing_is_an_error_that_says_what_there_is(field, pattern):
    with pytest.raises(SelectionError) as error:
        trainable_weights(small_net(), **{field: ["conv", pattern]})
    shown = pattern if field == "exclude" else pattern.removeprefix("!")
    assert f"'{shown}' matches no weight" in str(error.value)
    assert ("must match a whole name" in str(error.value)) is ("*" in pattern)
    for word in ("conv", "sequence", "bias"):
        assert word in str(error.value)


def test_a_preset_that_does_not_exist():
    with pytest.raises(SelectionError, match="no preset 'attention'.*Choose one of: all layers, "):
        trainable_weights(small_net(), preset="attention")


@pytest.mark.parametrize("preset", ["attention only", "cross-attention only", "no text cross-attention",
                                    "transformer blocks only", "temporal layers only"])  # fmt: skip
def test_a_preset_that_matches_nothing_is_an_error_that_says_what_there_is(preset):
    with pytest.raises(SelectionError, match=f"'{preset}' fits nothing in this model.*: conv, weight, grouped"):
        trainable_weights(small_net(), preset=preset)


def kinds(parameters):
    """Names of layers without numbers."""
    names = (p.name.removeprefix("diffusion_model.").removesuffix(".weight") for p in parameters)
    return {re.sub(r"(?<=\.)\d+(?=\.|$)", "N", name) for name in names}


def trained_kinds(family, preset):
    """The layers that a preset trains in a model of the host, and all of its layers, as `kinds`."""
    with torch.device("meta"):
        model = FAMILIES[family].make()
    parameters = [weight(f"diffusion_model.{name}.weight") for name in layers(model)]
    choice = Choice(preset=preset)
    choice.check(parameters)
    return kinds(p for p in parameters if choice.takes([p])), kinds(parameters)


UNET_ATTENTION = {f"input_blocks.N.N.transformer_blocks.N.attn{number}.{part}"
                  for number in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.N")}  # fmt: skip


@pytest.mark.parametrize("family, preset, expected", [
    ("SD1.5", "attention only", UNET_ATTENTION),
    ("SDXL", "attention only", UNET_ATTENTION),
    ("SD1.5", "cross-attention only", {name for name in UNET_ATTENTION if "attn2" in name}),
    ("SDXL", "cross-attention only", {name for name in UNET_ATTENTION if "attn2" in name}),
    ("SD3", "attention only", {f"joint_blocks.N.{side}_block.attn.{part}"
                               for side in ("x", "context") for part in ("qkv", "proj")}),
    ("Flux", "attention only", {f"double_blocks.N.{side}_attn.{part}"
                                for side in ("img", "txt") for part in ("qkv", "proj")}),
    ("Wan 2.1", "attention only", {f"blocks.N.{kind}_attn.{part}" for kind in ("self", "cross") for part in "qkvo"}),
    ("Wan 2.1", "cross-attention only", {f"blocks.N.cross_attn.{part}" for part in "qkvo"}),
])  # fmt: skip
def test_attention_in_the_models_of_the_host(comfy, family, preset, expected):
    assert trained_kinds(family, preset)[0] == expected


@pytest.mark.parametrize("family", ["SD1.5", "SDXL", "Wan 2.1"])
def test_no_text_cross_attention_is_everything_else(comfy, family):
    without, every = trained_kinds(family, "no text cross-attention")
    only, _ = trained_kinds(family, "cross-attention only")
    assert without | only == every and not without & only


@pytest.mark.parametrize("family", ["SD3", "Flux"])
@pytest.mark.parametrize("preset", ["cross-attention only", "no text cross-attention"])
def test_models_without_cross_attention_say_so(comfy, family, preset):
    with pytest.raises(SelectionError, match="fits nothing in this model"):
        trained_kinds(family, preset)


@pytest.mark.parametrize("family", ["SD1.5", "SDXL", "SD3", "Flux", "Wan 2.1"])
def test_transformer_blocks_in_the_models_of_the_host(comfy, family):
    blocks, every = trained_kinds(family, "transformer blocks only")
    names = {"SD3": "joint_blocks", "Flux": ("double_blocks", "single_blocks"), "Wan 2.1": "blocks"}
    if family in names:
        assert blocks == {name for name in every if name.startswith(names[family])}
    else:
        assert blocks == {name for name in every if ".transformer_blocks." in name}


@pytest.mark.parametrize("family", ["SD1.5", "SDXL", "SD3", "Flux", "Wan 2.1"])
def test_only_video_models_have_temporal_layers(comfy, family):
    with pytest.raises(SelectionError, match="temporal layers only"):
        trained_kinds(family, "temporal layers only")


def test_temporal_layers_of_a_video_unet(comfy):
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"):
        model = UNetModel(**VIDEO_LAYOUT)
    names = set(layers(model))
    temporal = set(trainable_weights_of(names, "temporal layers only"))
    assert temporal == {name for name in names if ".time_stack." in name or ".time_pos_embed." in name}
    assert "input_blocks.1.0.time_stack.in_layers.2" in temporal
    assert "input_blocks.1.1.time_stack.0.attn1.to_q" in temporal


def trainable_weights_of(names, preset):
    return [name for name in names if Choice(preset=preset).takes([weight(f"diffusion_model.{name}.weight")])]


def test_temporal_layers_under_the_names_of_motion_modules():
    names = ["down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.to_q",
             "down_blocks.0.temp_convs.0.conv1.3", "down_blocks.0.temp_attentions.0.proj_in",
             "down_blocks.0.resnets.0.temporal_res_block.conv1"]  # fmt: skip
    spatial = ["down_blocks.0.resnets.0.conv1", "time_embed.0", "time_embedding.linear_1"]
    assert trainable_weights_of(names + spatial, "temporal layers only") == names


def test_every_preset_is_tried_here():
    assert list(PRESETS) == ["all layers", "all layers, biases and norms", "attention only", "cross-attention only",
                             "no text cross-attention", "transformer blocks only", "temporal layers only"]  # fmt: skip
