"""What a file has beside the change of the base's weights: left out, counted and named; the base of another model is
still refused."""

import math

import pytest
import torch

from sara_core.conversion.read import read_delta
from sara_core.errors import DeltaError, UnsupportedModelError
from sara_core.models.base import opened_base
from tests.support.adapter_files import family_file
from tests.support.toy_adapters import (
    COLUMNS, LAYER, ROWS, base_file, changes, factors, numbers, of_module, saved, weights,
)  # fmt: skip

GOOD = of_module(LAYER, factors())
FLAT = of_module("lora_unet_blocks_0_q", factors())


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_file(tmp_path_factory.mktemp("toy"))


# Names of what is left out → the file's further tensors, and a word of the line about them.
BESIDE = {
    "a difference of a bare parameter": ({"blocks.0.diff_m": numbers(1, 6)}, ["blocks.0.diff_m"], "no place for them"),
    "new words": ({"bundle_emb.my word.clip_l": numbers(4, 8)}, ["bundle_emb.my word.clip_l"], "no place"),
    "words of pivotal tuning": ({"emb_params": numbers(4, 8)}, ["emb_params"], "1 part of the file"),
    "a counter": ({"iteration": torch.tensor(4), "global_step": torch.tensor([4])}, ["iteration", "global_step"],
                  "2 parts of the file"),
    "moments of an optimizer": ({f"{LAYER}.exp_avg": numbers(8, 6)}, [f"{LAYER}.exp_avg"], "exp_avg"),
    "layers of another variant": (of_module("blocks.0.k_img", factors()) | of_module("img_emb.proj.1", factors()),
                                  ["blocks.0.k_img", "img_emb.proj.1"], "blocks.0.k_img, img_emb.proj.1"),
    "an alpha of nothing": ({"blocks.1.k.alpha": torch.tensor(4.0)}, ["blocks.1.k.alpha"], "blocks.1.k.alpha"),
    "a VAE": (of_module("lora_vae_decoder_conv_in", factors()), ["lora_vae_decoder_conv_in"], "of the VAE"),
    "a control net": (of_module("lora_controlnet_input_blocks_1_0", factors()),
                      ["lora_controlnet_input_blocks_1_0"], "of a control net"),
    **{f"the text encoder as {name}": (of_module(name, factors()), [name], "1 modules of the text encoder")
       for name in ("lora_te3_encoder_block_0", "lora_te_layers_0_mlp_down_proj", "text_encoder_3.q",
                    "t5xxl.encoder.x", "llama.model.layers.0.q", "qwen25_7b.model.layers.0.q", "lora_llm_layers_0_q")},
}  # fmt: skip


@pytest.mark.parametrize("what", BESIDE)
@pytest.mark.parametrize("good", [GOOD, FLAT], ids=["dots", "underscores"])
def test_what_the_base_has_no_place_for_is_left_out_counted_and_named(tmp_path, base, what, good):
    beside, names, words = BESIDE[what]
    alone, _ = changes(saved(tmp_path / "alone.safetensors", good), base)
    found, conversion = changes(saved(tmp_path / "x.safetensors", good | beside), base)
    assert found.keys() == {f"{LAYER}.weight"} and torch.equal(found[f"{LAYER}.weight"], alone[f"{LAYER}.weight"])
    assert sorted(conversion.left_out) == sorted(names)
    assert words in conversion.text() and all(name in conversion.text() for name in names)


def test_blocks_that_the_base_lacks_may_be_the_lesser_part(tmp_path, base):
    """Of an image-to-video model, or a deeper one of the same width."""
    deeper = of_module("blocks.2.q", factors()) | of_module("blocks.3.q", factors())
    both = GOOD | of_module("blocks.1.q", factors())
    _, conversion = changes(saved(tmp_path / "x.safetensors", both | deeper), base)
    assert conversion.left_out == ["blocks.2.q", "blocks.3.q"]


ANOTHER_MODEL = {
    "more blocks that it lacks than it has": GOOD | of_module("blocks.2.q", factors())
    | of_module("stages.1.q", factors()),
    "the same with underscores": FLAT | of_module("lora_unet_down_blocks_1_attentions_0_proj_in", factors())
    | of_module("lora_unet_down_blocks_2_attentions_0_proj_in", factors()),
    "none that it has": of_module("double_blocks.0.img_attn.proj", factors()),
    "none, and a counter": of_module("other", factors()) | {"iteration": torch.tensor(4)},
    "a layer of another size": GOOD | of_module("blocks.1.q", factors(rows=16)),
}  # fmt: skip


@pytest.mark.parametrize("what", ANOTHER_MODEL)
def test_the_base_of_another_model_is_refused(tmp_path, base, what):
    with pytest.raises(DeltaError, match="Give the base"):
        read_delta(saved(tmp_path / "x.safetensors", ANOTHER_MODEL[what]), base, density=1.0)


def test_a_file_of_an_unknown_kind_with_a_known_part_is_refused_as_that(tmp_path, base):
    unknown = {f"blocks.{block}.{layer}.wonder_a": numbers(3) for block in (0, 1) for layer in "kv"}
    path = saved(tmp_path / "x.safetensors", {f"{LAYER}.diff_b": numbers(8)} | unknown)
    with pytest.raises(DeltaError, match="4 tensors of an unknown kind, such as 'blocks.0.k.wonder_a'"):
        read_delta(path, base, density=1.0)


@pytest.mark.parametrize("beside, words", [
    (of_module("lora_te_somewhere_else", factors()), "only text encoders"),
    (of_module("lora_vae_decoder_conv_in", factors()), "only the VAE"),
])  # fmt: skip
def test_nothing_but_another_part_of_the_pipeline_is_called_by_its_name(tmp_path, base, beside, words):
    with pytest.raises(DeltaError, match=f"{words}; a SaRA delta changes .* whose names are known"):
        read_delta(saved(tmp_path / "x.safetensors", beside), base, density=1.0)


@pytest.mark.parametrize("file, base", [("SD3", "Flux"), ("Flux", "SD3")])
def test_another_family_with_some_of_the_same_names_is_refused_by_name(comfy, tmp_path, file, base):
    """In diffusers' names SD3 and Flux share most of a block, and small models its sizes too."""
    with opened_base(family_file(file, tmp_path / "own.safetensors")) as own:
        shapes = own.diffusers_shapes
    tensors = {}
    for name, shape in shapes.items():
        if ("attn" in name or "pos_embed" in name) and name.endswith(".weight") and len(shape) > 1:
            module = name.removesuffix(".weight")
            tensors |= of_module(f"transformer.{module}", factors(shape[0], math.prod(shape[1:])))
    path = saved(tmp_path / "x.safetensors", tensors)
    with pytest.raises(DeltaError, match=f"The file is for {file}, and 'base.safetensors' is {base}: .*Give the base"):
        read_delta(path, family_file(base, tmp_path / "base.safetensors"), density=1.0)
    assert read_delta(path, tmp_path / "own.safetensors", density=1.0).delta.nnz


@pytest.mark.parametrize("wrapped", ["base_model.model.", "base_model.model.unet.", "transformer.base_model.model.",
                                     "base_model.model.diffusion_model.", "_orig_mod.", "module.", "net.",
                                     "model.diffusion_model.", "base_model.model._orig_mod."])  # fmt: skip
def test_what_a_model_was_wrapped_in_may_stand_before_its_names(tmp_path, base, wrapped):
    deeper = of_module(f"{wrapped}blocks.2.q", factors())
    path = saved(tmp_path / "x.safetensors", of_module(wrapped + LAYER, factors()) | deeper)
    found, conversion = changes(path, base)
    assert found.keys() == {f"{LAYER}.weight"} and conversion.left_out == [f"{wrapped}blocks.2.q"]


PACKED = {
    "nvfp4": {"blocks.0.q.weight": torch.zeros(ROWS, COLUMNS // 2, dtype=torch.uint8),
              "blocks.0.q.weight_scale": torch.ones(ROWS, 1)},
    "four bits in one row": {"blocks.0.q.weight": torch.zeros(ROWS * COLUMNS // 2, 1, dtype=torch.uint8)},
}  # fmt: skip


@pytest.mark.parametrize("what", PACKED)
def test_a_base_whose_quantisation_has_shapes_of_its_own_is_called_that(tmp_path, what):
    base = saved(tmp_path / "base.safetensors", weights() | PACKED[what])
    with pytest.raises(UnsupportedModelError, match="blocks.0.q.weight.*stored as U8.*Use the fp16, bf16 or fp32"):
        read_delta(saved(tmp_path / "x.safetensors", GOOD), base, density=1.0)


def test_a_quantised_adapter_is_called_that(tmp_path, base):
    packed = {name: torch.zeros(tensor.shape, dtype=torch.uint8) for name, tensor in GOOD.items()}
    with pytest.raises(DeltaError, match="stored as torch.uint8, as in quantised files.*Get the file in fp16"):
        read_delta(saved(tmp_path / "x.safetensors", packed), base, density=1.0)
