"""Whatever prefix a file has, and whatever its names become when the host loads it: Bake, Extract and Convert mean the
same weights as the loaded model."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sara_core import DeltaError, SparseDelta
from sara_core.conversion.read import read_delta
from sara_core.extraction.extract import extract_with_report
from sara_core.models.bake import bake
from sara_core.models.base import opened_base
from sara_core.names.stored import loaded_names, prefix_in
from tests.core.names.test_recognition import comfy_layouts
from tests.core.names.test_resolve import SMALL
from tests.support.adapter_files import lora
from tests.support.family_models import FAMILIES, random_state_dict, transformer
from tests.support.foreign_files import assert_equal_weights
from tests.support.toy_models import delta_entries

OF_THE_HOST = ("model.diffusion_model.", "model.model.", "net.", "model.")
PREFIXES = (*OF_THE_HOST, "diffusion_model.", "transformer.", "")
BESIDE = {"vae.decoder.conv_in.weight": torch.ones(2, 2), "text_encoders.x.weight": torch.ones(3),
          "model_ema.decay": torch.ones(1)}  # fmt: skip


def stored(weights, prefix, path):
    """A file with other models beside where the prefix tells them apart."""
    beside = BESIDE if prefix in OF_THE_HOST else {}
    save_file({**{f"{prefix}{name}": weight.contiguous() for name, weight in weights.items()}, **beside}, path)
    return path


def some_delta(weights):
    wide = {f"diffusion_model.{name}": weight for name, weight in weights.items()
            if weight.dim() > 1 and name.endswith(".weight")}  # fmt: skip
    return SparseDelta(delta_entries(wide, 0.02))


@pytest.fixture(scope="module")
def wan(comfy):
    return FAMILIES["Wan 2.1"].state_dict()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_tools_mean_the_same_weights_behind_every_prefix(comfy, wan, tmp_path, prefix):
    path, baked = stored(wan, prefix, tmp_path / "base.safetensors"), tmp_path / "baked.safetensors"
    delta = some_delta(wan)
    bake(path, baked, delta)
    before, after = load_file(path), load_file(baked)
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {prefix + name.removeprefix("diffusion_model.") for name in delta.entries}
    extracted, report = extract_with_report(path, baked)
    assert extracted.entries.keys() == delta.entries.keys()
    assert report.elements == sum(weight.numel() for weight in wan.values())
    layers = {f"diffusion_model.blocks.{block}.cross_attn.q": (128, 128) for block in (0, 1)}
    factors = {layer + part: t for layer, shape in layers.items()
               for part, t in lora(*shape, up="lora_B.weight", down="lora_A.weight").items()}  # fmt: skip
    save_file(factors, tmp_path / "lora.safetensors")
    converted = read_delta(tmp_path / "lora.safetensors", path, density=1.0).delta
    assert converted.entries.keys() == {f"{layer}.weight" for layer in layers}


@pytest.mark.parametrize("prefix", (*OF_THE_HOST, ""))
def test_a_baked_file_is_what_the_loader_makes_of_the_base(comfy, wan, tmp_path, prefix):
    from comfy.sd import load_diffusion_model_state_dict

    path, baked = stored(wan, prefix, tmp_path / "base.safetensors"), tmp_path / "baked.safetensors"
    delta = some_delta(wan)
    bake(path, baked, delta)
    model, want = (load_diffusion_model_state_dict(load_file(file), model_options={"dtype": torch.float32})
                   for file in (path, baked))  # fmt: skip
    own = comfy.pack_module("sara_core.delta").SparseDelta(delta.entries)
    patched = comfy.pack_module("nodes.host.patching").patch_model(model, own, 1.0)
    patched.patch_model()
    ours, theirs = patched.model_state_dict(), want.model_state_dict()
    assert_equal_weights(ours, theirs)
    patched.unpatch_model()


@pytest.mark.parametrize("prefix", (*OF_THE_HOST, "", "core."))
def test_the_prefix_is_the_one_that_the_host_takes_off(comfy, wan, prefix):
    from comfy.model_detection import unet_prefix_from_state_dict

    names = [f"{prefix}{name}" for name in wan] + list(BESIDE)
    ours, theirs = prefix_in(names), unet_prefix_from_state_dict(dict.fromkeys(names))
    assert ours == prefix
    assert ours == theirs or not any(name.startswith(theirs) for name in names)


def test_a_few_names_that_begin_like_a_prefix_are_no_prefix():
    assert prefix_in(["net.0.weight", "head.weight"]) == "" == prefix_in([])
    assert prefix_in(["net.0.weight", "net.2.weight"]) == "net."
    assert prefix_in([f"net.{i}.weight" for i in range(9)] + ["model.diffusion_model.a.weight"]) == "net."


TENCENT = (
    "img_in.proj.weight", "txt_in.input_embedder.weight", "txt_in.t_embedder.mlp.0.weight",
    "txt_in.t_embedder.mlp.2.bias", "txt_in.c_embedder.linear_1.weight", "txt_in.c_embedder.linear_2.weight",
    "txt_in.individual_token_refiner.blocks.0.norm1.weight",
    "txt_in.individual_token_refiner.blocks.0.self_attn_qkv.weight",
    "txt_in.individual_token_refiner.blocks.0.self_attn_proj.weight",
    "txt_in.individual_token_refiner.blocks.0.mlp.fc1.weight",
    "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.weight",
    "time_in.mlp.0.weight", "time_in.mlp.2.weight", "vector_in.in_layer.weight", "guidance_in.mlp.0.bias",
    "double_blocks.0.img_mod.linear.weight", "double_blocks.0.txt_attn_qkv.weight",
    "double_blocks.0.img_attn_q_norm.weight", "double_blocks.0.txt_attn_k_norm.weight",
    "double_blocks.0.img_attn_proj.bias", "double_blocks.0.img_mlp.fc1.weight", "double_blocks.0.txt_mlp.fc2.weight",
    "single_blocks.0.linear1.weight", "single_blocks.0.q_norm.weight", "single_blocks.0.k_norm.weight",
    "single_blocks.0.modulation.linear.weight", "final_layer.linear.weight", "byt5_in.fc1.weight",
)  # fmt: skip
SCALES = ("double_blocks.0.img_attn.norm.query_norm.scale", "single_blocks.0.norm.key_norm.scale")
RENAMED = {
    "HunyuanVideo": (*TENCENT, *SCALES),
    "Chroma": ("distilled_guidance_layer.in_proj.weight", "distilled_guidance_layer.norms.0.scale", *SCALES),
    "Hunyuan3Dv2": ("latent_in.weight", *SCALES),
    "Flux": ("img_in.weight", *SCALES),
}


@pytest.mark.parametrize("config", RENAMED)
def test_names_become_what_the_host_makes_of_them(comfy, config):
    import comfy.supported_models

    kind = getattr(comfy.supported_models, config)
    theirs = kind.process_unet_state_dict(None, {name: name for name in RENAMED[config]})
    for prefix in ("", "model.model.", "model.diffusion_model."):
        ours = loaded_names([prefix + name for name in RENAMED[config]])
        assert ours == {name: prefix + found for name, found in theirs.items()}


def test_a_parameter_that_is_called_scale_keeps_its_name():
    names = ["blocks.0.prenorm.scale", "blocks.0.qknorm.qnorm.scale"]  # Krea 2
    assert loaded_names(names) == dict(zip(names, names))


def test_a_delta_goes_into_hunyuan_video_as_tencent_published_it(comfy, tmp_path):
    own = random_state_dict(lambda: transformer(*comfy_layouts()["HunyuanVideo"]))
    back = {"img_attn.qkv": "img_attn_qkv", "img_mod.lin": "img_mod.linear", "img_mlp.0": "img_mlp.fc1",
            "img_attn.norm.query_norm": "img_attn_q_norm"}  # fmt: skip
    published = {}
    for name, weight in own.items():
        for ours, theirs in back.items():
            name = name.replace(f"double_blocks.0.{ours}.", f"double_blocks.0.{theirs}.")
        published[name] = weight
    path = stored(published, "model.model.", tmp_path / "base.safetensors")
    delta = some_delta(own)
    bake(path, tmp_path / "baked.safetensors", delta)
    extracted, _ = extract_with_report(path, tmp_path / "baked.safetensors")
    assert extracted.entries.keys() == delta.entries.keys()


@pytest.mark.parametrize("name", SMALL)
def test_a_delta_goes_into_a_single_file_in_diffusers_names(name, tmp_path):
    torch.manual_seed(0)
    kind, config = SMALL[name]
    save_file(kind(**config).state_dict(), tmp_path / "base.safetensors")
    with opened_base(tmp_path / "base.safetensors") as base:
        delta = some_delta({own: base.weight(own) for own in base.shapes})
    bake(tmp_path / "base.safetensors", tmp_path / "baked.safetensors", delta)
    with opened_base(tmp_path / "base.safetensors") as base, opened_base(tmp_path / "baked.safetensors") as baked:
        want = {own.removeprefix("diffusion_model."): weight.clone() for own, weight in base.weights().items()}
        delta.apply_(want)
        assert_equal_weights({own: baked.weight(own) for own in baked.shapes}, want)


def test_a_delta_of_another_model_is_still_refused(wan, tmp_path):
    path = stored(wan, "net.", tmp_path / "base.safetensors")
    other = SparseDelta(delta_entries({"diffusion_model.layers.0.weight": torch.zeros(8, 8)}, 0.5))
    with pytest.raises(DeltaError, match="None of the delta's 1 weights"):
        bake(path, tmp_path / "out.safetensors", other)
