"""Wan, Z-Image and Qwen-Image: their names, beside what diffusers itself makes of their original files, and what has
some of them and is none of them."""

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file

from sara_core.delta import SparseDelta, SparseEntry
from sara_core.diffusers_bridge import comfyui_delta
from sara_core.models.base import opened_base
from sara_core.names.diffusers import diffusers_parts, family
from tests.support import tiny_diffusers
from tests.support.foreign_files import pipeline_folder

CONVERTED = {
    "Wan 2.1": single_file_utils.convert_wan_transformer_to_diffusers,
    "Z-Image": single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers,
}
MAKE = {
    "Wan 2.1": tiny_diffusers.wan, "Wan 2.1, from a picture": tiny_diffusers.wan_from_picture,
    "Z-Image": tiny_diffusers.z_image,
}  # fmt: skip


def shapes_of(weights):
    return {name: tuple(weight.shape) for name, weight in weights.items()}


@pytest.mark.parametrize("name", MAKE)
def test_the_names_are_those_that_diffusers_makes_of_the_original_files(tmp_path, name):
    model = MAKE[name]()
    with opened_base(pipeline_folder(tmp_path, model)) as base:
        assert base.family == name.split(",")[0] and base.is_diffusers
        original = {name: weight.clone() for name, weight in base.weights().items()}
    original = {name.removeprefix("diffusion_model."): weight for name, weight in original.items()}
    assert diffusers_parts(shapes_of(original)) == diffusers_parts(shapes_of(model.state_dict()))
    theirs = CONVERTED[name.split(",")[0]](dict(original))
    assert theirs.keys() == model.state_dict().keys()
    assert all(torch.equal(theirs[name], weight) for name, weight in model.state_dict().items())


def test_vace_and_the_pictures_place_are_wans_too():
    shapes = {
        "vace_blocks.0.before_proj.weight": (8, 8), "vace_blocks.0.modulation": (1, 6, 8),
        "vace_patch_embedding.bias": (8,), "img_emb.emb_pos": (1, 9, 8), "blocks.3.cross_attn.norm_k_img.weight": (8,),
    }  # fmt: skip
    theirs = {
        "vace_blocks.0.proj_in.weight", "vace_blocks.0.scale_shift_table", "vace_patch_embedding.bias",
        "condition_embedder.image_embedder.pos_embed", "blocks.3.attn2.norm_added_k.weight",
    }  # fmt: skip
    assert family(shapes) == "Wan 2.1" and diffusers_parts(shapes).keys() == theirs


def test_wan_2_2_is_told_by_the_width_of_its_small_model():
    assert family({"blocks.0.self_attn.q.weight": (3072, 3072)}) == "Wan 2.2"
    assert family({"blocks.0.attn1.to_out.0.weight": (3072, 3072)}) == "Wan 2.2"
    assert family({"blocks.0.self_attn.q.weight": (5120, 5120)}) == "Wan 2.1"


@pytest.mark.parametrize(
    "shapes",
    [
        {"blocks.0.self_attn.q_proj.weight": (8, 8)},  # Cosmos Predict 2
        {"blocks.0.attn1.to_q.weight": (8, 8)},  # Hunyuan3D
        # Wan with adapters whose names diffusers has otherwise: as it is, rather than without them
        {"blocks.0.self_attn.q.weight": (8, 8), "face_adapter.fuser_blocks.0.linear1_q.weight": (8, 8)},
        {"layers.0.attention.qkv.weight": (32, 16), "layers.0.adaLN_modulation.1.weight": (64, 16)},  # Lumina 2
        {"layers.0.feed_forward.w1.weight": (9216, 2304)},
        {"transformer_blocks.0.img_mod.1.weight": (48, 8), "text_fusion.0.weight": (8, 8)},
    ],
)
def test_what_has_some_of_their_names_is_none_of_them(shapes):
    assert family(shapes) is None and diffusers_parts(shapes) == {}


@pytest.mark.parametrize(
    ("shapes", "name"),
    [
        ({"layers.0.attention.qkv.weight": (48, 16)}, "Z-Image"),
        ({"layers.3.feed_forward.w2.weight": (3840, 10240)}, "Z-Image"),
        ({"layers.0.attention.to_k.weight": (16, 16)}, "Z-Image"),
        ({"transformer_blocks.7.txt_mlp.net.0.proj.bias": (64,), "img_in.weight": (8, 4)}, "Qwen-Image"),
        ({"head.modulation": (1, 2, 8), "blocks.1.ffn.0.weight": (16, 8)}, "Wan 2.1"),
    ],
)
def test_a_few_of_their_weights_tell(shapes, name):
    assert family(shapes) == name


def test_qwen_image_has_the_same_names_on_both_sides(tmp_path):
    model = tiny_diffusers.qwen_image()
    with opened_base(pipeline_folder(tmp_path, model)) as base:
        assert base.family == "Qwen-Image" and base.shapes.keys() == model.state_dict().keys()


def test_what_is_trained_in_diffusers_goes_into_comfyui_under_other_names(tmp_path):
    entry = SparseEntry(torch.tensor([3], dtype=torch.int32), torch.ones(1), (64, 64))
    model = tiny_diffusers.z_image()
    delta = comfyui_delta(model, SparseDelta({"layers.0.attention.to_v.weight": entry}))
    assert delta.metadata["sara.family"] == "Z-Image"
    assert delta.entries["diffusion_model.layers.0.attention.qkv.weight"].indices.tolist() == [2 * 64 * 64 + 3]


def test_what_is_trained_in_diffusers_goes_into_comfyui_under_the_same_names(tmp_path):
    entry = SparseEntry(torch.tensor([3], dtype=torch.int32), torch.ones(1), (64, 64))
    delta = comfyui_delta(tiny_diffusers.qwen_image(), SparseDelta({"transformer_blocks.0.attn.to_q.weight": entry}))
    assert list(delta.entries) == ["diffusion_model.transformer_blocks.0.attn.to_q.weight"]
    assert delta.metadata["sara.family"] == "Qwen-Image"


def test_an_original_file_with_a_norm_that_nothing_reads_is_still_z_image(tmp_path):
    weights = {"layers.0.attention.qkv.weight": torch.zeros(48, 16), "norm_final.weight": torch.ones(16)}
    save_file(weights, tmp_path / "z.safetensors")
    with opened_base(tmp_path / "z.safetensors") as base:
        assert base.family == "Z-Image" and not base.is_diffusers and base.shapes.keys() == weights.keys()
