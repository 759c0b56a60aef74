"""No model is taken for another family by a few shared names, under diffusers' names or ComfyUI's: what is not known
keeps its names, as a whole."""

import functools
import inspect

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from sara_core import DeltaError, SparseDelta, SparseEntry, UnsupportedModelError, extract
from sara_core.conversion.read import read_delta
from sara_core.diffusers_bridge import comfyui_delta, load_delta
from sara_core.files.source import Source
from sara_core.models.base import Base
from sara_core.names.diffusers import diffusers_parts, family
from tests.core.names.test_resolve import SMALL
from tests.support.family_models import FLUX_LAYOUT, random_state_dict, transformer

# SkyReels V2 and ChronoEdit are Wan 2.1, trained further.
FAMILIES = {"FluxTransformer2DModel": "Flux", "Flux2Transformer2DModel": "Flux.2", "SD3Transformer2DModel": "SD3",
            "UNet2DConditionModel": "SD1.5", "QwenImageTransformer2DModel": "Qwen-Image",
            "ZImageTransformer2DModel": "Z-Image", "WanTransformer3DModel": "Wan 2.1",
            "WanVACETransformer3DModel": "Wan 2.1", "SkyReelsV2Transformer3DModel": "Wan 2.1",
            "ChronoEditTransformer3DModel": "Wan 2.1"}  # fmt: skip
# What diffusers and ComfyUI name alike.
ONE_NAME = {"QwenImageTransformer2DModel"}
# The only ones whose own defaults make a model of a family: the layers of the class, or SD's with some more.
SAME_LAYERS = {"AudioLDM2UNet2DConditionModel", "UNetMotionModel"}
CONFIGS = {
    "UNet2DConditionModel": {"cross_attention_dim": 768},
    "HiDreamImageTransformer2DModel": {"patch_size": 2, "in_channels": 16, "num_layers": 1, "num_single_layers": 1,
                                       "attention_head_dim": 8, "num_attention_heads": 2, "text_emb_dim": 8,
                                       "caption_channels": [8, 8]},
    "HunyuanDiT2DModel": {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "patch_size": 2,
                          "num_layers": 2, "sample_size": 16},
    "LatteTransformer3DModel": {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "sample_size": 8,
                                "patch_size": 2, "cross_attention_dim": 16, "caption_channels": 16},
    "LuminaNextDiT2DModel": {"sample_size": 8, "hidden_size": 64, "num_layers": 1, "num_attention_heads": 2,
                             "num_kv_heads": 2, "multiple_of": 8},
    "WanVACETransformer3DModel": {"vace_layers": [0, 1]},
    "OmniGenTransformer2DModel": {"hidden_size": 16, "intermediate_size": 16, "num_layers": 1, "num_attention_heads": 2,
                                  "num_key_value_heads": 2,
                                  "rope_scaling": {"long_factor": [1.0] * 4, "short_factor": [1.0] * 4}},
}  # fmt: skip


def classes():
    """Names of all transformers and UNets that diffusers has."""
    words = ("Transformer", "UNet", "UVit", "DiT")
    names = (name for name in dir(diffusers) if any(word in name for word in words))
    left_out = SAME_LAYERS | WITHOUT_DEFAULTS
    return [name for name in names if _is_model(getattr(diffusers, name)) and name not in left_out]


def _is_model(kind):
    return inspect.isclass(kind) and issubclass(kind, diffusers.ModelMixin)


# The classes that cannot be made without more settings than they have defaults.
WITHOUT_DEFAULTS = {
    "DreamLiteTransformer2DModel", "EasyAnimateTransformer3DModel", "HunyuanDiT2DControlNetModel",
    "HunyuanDiT2DMultiControlNetModel", "TransformerTemporalModel", "Transformer2DModel",
}  # fmt: skip


@functools.cache
def model_of(name):
    """One of few layers and without memory for its weights."""
    kind = getattr(diffusers, name)
    fewer = dict.fromkeys({"num_layers", "num_single_layers"} & set(inspect.signature(kind).parameters), 2)
    with torch.device("meta"):
        return kind(**{**fewer, **CONFIGS.get(name, {})})


@pytest.mark.parametrize("name", classes())
def test_a_diffusers_model_is_its_family_or_keeps_all_its_names(name):
    model = model_of(name)
    weights = dict(model.state_dict())
    base = Base(Source(name, tensors=weights))
    assert base.family == FAMILIES.get(name) and base.is_diffusers == (name in FAMILIES.keys() - ONE_NAME)
    assert base.elements == sum(weight.numel() for weight in weights.values())
    assert base.diffusers_shapes == {own: tuple(weight.shape) for own, weight in weights.items()}
    if name not in FAMILIES:
        assert base.shapes == base.diffusers_shapes
        with pytest.raises(UnsupportedModelError, match=f"weights of a {name} are not known"):
            comfyui_delta(model, SparseDelta({}))


def test_enough_of_diffusers_models_are_tried():
    assert len(classes()) > 60 and CONFIGS.keys() <= set(classes())


def comfy_layouts():
    """Name → (class, layout) of models that ComfyUI calls some layers by the names of Flux, SD3 or SD."""
    from comfy.ldm.chroma.model import Chroma
    from comfy.ldm.hunyuan3d.model import Hunyuan3Dv2
    from comfy.ldm.hunyuan_video.model import HunyuanVideo
    from comfy.ldm.lightricks.av_model import LTXAVModel
    from comfy.ldm.lightricks.model import LTXVModel
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    ltx = {"in_channels": 8, "cross_attention_dim": 128, "attention_head_dim": 64, "num_attention_heads": 2,
           "caption_channels": 16, "num_layers": 2}  # fmt: skip
    mmdit = {**{key: value for key, value in FLUX_LAYOUT.items() if key != "txt_ids_dims"}, "context_in_dim": 32}
    video = {"patch_size": [1, 2, 2], "byt5": False, "meanflow": False, "use_cond_type_embedding": False,
             "vision_in_dim": None, "meanflow_sum": False}  # fmt: skip
    chroma = {key: value for key, value in mmdit.items() if key != "guidance_embed"}
    unet = {"image_size": 32, "in_channels": 8, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
            "channel_mult": [1, 1], "transformer_depth": [1, 1], "transformer_depth_output": [1] * 4,
            "transformer_depth_middle": 1, "context_dim": 1024, "num_head_channels": 16,
            "use_spatial_transformer": True, "legacy": False}  # fmt: skip
    temporal = {"use_temporal_attention": True, "use_temporal_resblock": True, "merge_strategy": "learned",
                "video_kernel_size": [3, 1, 1], "extra_ff_mix_layer": True}  # fmt: skip
    return {
        "LTX-Video": (LTXVModel, ltx),
        "LTX-2": (LTXAVModel, {**ltx, "audio_in_channels": 8, "audio_cross_attention_dim": 128,
                               "audio_num_attention_heads": 2}),
        "HunyuanVideo": (HunyuanVideo, {**mmdit, **video}),
        "Chroma": (Chroma, {**chroma, "txt_ids_dims": [], "in_dim": 64, "out_dim": 128, "hidden_dim": 64,
                            "n_layers": 1, "vec_in_dim": 768}),
        "Hunyuan3D": (Hunyuan3Dv2, {"in_channels": 8, "context_in_dim": 16, "hidden_size": 64, "num_heads": 2,
                                    "depth": 1, "depth_single_blocks": 1}),
        "SVD": (UNetModel, {**unet, **temporal}),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["LTX-Video", "LTX-2", "HunyuanVideo", "Chroma", "Hunyuan3D", "SVD"])
def test_a_model_in_comfyuis_names_is_no_other_family(comfy, name):
    kind, layout = comfy_layouts()[name]
    with torch.device("meta"):
        weights = transformer(kind, layout).state_dict()
    for prefix in ("", "model.diffusion_model."):
        base = Base(Source(name, tensors={prefix + own: weight for own, weight in weights.items()}))
        assert base.family is None and not base.is_diffusers and base.shapes.keys() == weights.keys()


@pytest.mark.parametrize("name", ["LTX-Video", "HunyuanVideo", "SVD"])
def test_a_model_in_comfyuis_names_gives_deltas_in_them(comfy, name, tmp_path):
    kind, layout = comfy_layouts()[name]
    weights = random_state_dict(lambda: transformer(kind, layout))
    path, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    save_file({f"model.diffusion_model.{own}": weight for own, weight in weights.items()}, path)
    layers = [own for own, weight in weights.items() if weight.dim() == 2][::5]
    for layer in layers:
        weights[layer] = weights[layer].clone()
        weights[layer].view(-1)[3] += 1
    save_file({f"model.diffusion_model.{own}": weight for own, weight in weights.items()}, tuned)
    delta = extract(path, tuned)
    assert delta.entries.keys() == {f"diffusion_model.{layer}" for layer in layers}
    lora = {}
    for layer in layers:
        module, (rows, columns) = f"diffusion_model.{layer.removesuffix('.weight')}", weights[layer].shape
        lora |= {f"{module}.lora_A.weight": torch.randn(2, columns), f"{module}.lora_B.weight": torch.randn(rows, 2)}
    save_file(lora, tmp_path / "lora.safetensors")
    converted = read_delta(tmp_path / "lora.safetensors", path, density=1.0).delta
    assert converted.entries.keys() == delta.entries.keys()


SHARED = {
    "PixArt": ("pos_embed.proj.weight", "transformer_blocks.0.attn2.to_q.weight", "proj_out.weight"),
    "LTX-Video": ("transformer_blocks.0.attn2.to_q.weight", "transformer_blocks.0.ff.net.0.proj.weight"),
    "Qwen-Image": ("transformer_blocks.0.attn.add_q_proj.weight", "transformer_blocks.0.attn.to_q.weight"),
}


@pytest.mark.parametrize("model", SHARED)
def test_a_few_layers_that_several_families_have_need_their_model(model):
    with pytest.raises(DeltaError, match="several families.*Give the base model"):
        diffusers_parts(dict.fromkeys(SHARED[model], (8, 8)))


@pytest.mark.parametrize("names", [*SHARED.values(), ("double_blocks.0.img_attn.qkv.weight", "img_in.proj.weight")])
def test_a_base_with_a_few_shared_names_is_of_no_family(names):
    base = Base(Source("base", tensors={name: torch.zeros(8, 8) for name in names}))
    assert base.family is None and base.shapes.keys() == set(names)


def small(name):
    torch.manual_seed(0)
    kind, config = SMALL[name]
    return kind(**config)


@pytest.mark.parametrize("name", SMALL)
def test_a_model_without_one_thing_it_must_have_is_of_no_family(name):
    weights = dict(small(name).state_dict())
    assert family({own: tuple(weight.shape) for own, weight in weights.items()}) == name
    for missing in ("proj_out", "context_embedder", "time_text_embed.text_embedder.linear_1", "norm_out.linear"):
        fewer = {own: weight for own, weight in weights.items() if not own.startswith(f"{missing}.")}
        base = Base(Source("base", tensors=fewer))
        assert base.family is None and base.shapes.keys() == fewer.keys()


@pytest.mark.parametrize("added", ["image_proj.weight", "transformer_blocks.0.attn.processor.to_k_ip.0.weight",
                                   "transformer_blocks.0.attn.to_q.lora_A.style.weight"])  # fmt: skip
@pytest.mark.parametrize("name", SMALL)
def test_what_was_put_into_a_model_is_kept_under_its_own_name(name, added):
    weights = {**small(name).state_dict(), added: torch.full((2, 3), 7.0)}
    base = Base(Source("base", tensors=weights))
    assert base.family == name and base.is_diffusers
    assert base.elements == sum(weight.numel() for weight in weights.values())
    assert torch.equal(base.weight(added), weights[added])
    entry = SparseEntry(torch.tensor([1], dtype=torch.int32), torch.ones(1), (2, 3))
    assert base.from_diffusers({added: entry}).keys() == {f"diffusion_model.{added}"}


@pytest.mark.parametrize("name", SMALL)
def test_other_layers_in_its_blocks_make_it_another_model(name):
    weights = {**small(name).state_dict(), "transformer_blocks.1.attn3.to_q.weight": torch.zeros(8, 8)}
    base = Base(Source("base", tensors=weights))
    assert base.family is None and base.shapes.keys() == weights.keys()


def test_a_delta_of_an_unknown_model_loads_where_it_was_trained():
    torch.manual_seed(0)
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, cross_attention_dim=16, caption_channels=8,
        sample_size=8, norm_num_groups=1,
    )  # fmt: skip
    name = "transformer_blocks.0.attn2.to_q.weight"
    weight = model.get_parameter(name)
    before = weight.detach().clone()
    entry = SparseEntry(torch.tensor([5], dtype=torch.int32), torch.tensor([0.5]), tuple(weight.shape))
    handle = load_delta(model, SparseDelta({name: entry}))
    assert torch.equal(weight.detach().view(-1)[5], before.view(-1)[5] + 0.5)
    handle.remove()
    assert torch.equal(weight, before)


def test_a_controlnet_is_half_a_unet_and_of_no_family():
    with torch.device("meta"):
        model = diffusers.ControlNetModel(cross_attention_dim=768)
    weights = dict(model.state_dict())
    base = Base(Source("ControlNet", tensors=weights))
    assert base.family is None and base.shapes.keys() == weights.keys()
    with pytest.raises(UnsupportedModelError, match="weights of a ControlNetModel are not known"):
        comfyui_delta(model, SparseDelta({}))
