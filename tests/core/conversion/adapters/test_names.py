"""The names that adapter files of several trainers have for modules of Flux, Flux.2 and Wan, as ComfyUI reads them."""

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from sara_core.conversion.read import read_delta
from sara_core.errors import DeltaError
from sara_core.models.base import opened_base
from sara_core.names.diffusers import diffusers_parts, family
from tests.support.adapter_files import assert_same_as_the_hosts, dense, family_file, lora, random
from tests.support.family_models import FAMILIES, FLUX_LAYOUT, Family, transformer
from tests.support.foreign_files import assert_equal_weights, pipeline_folder, weights_of

WIDTH = FLUX_LAYOUT["hidden_size"]
# By the layout that the host recognises Flux.2 in: one head of 128, gated MLPs, no biases, one modulation for all.
FLUX2_LAYOUT = {
    **FLUX_LAYOUT, "out_channels": 128, "vec_in_dim": None, "context_in_dim": 64, "mlp_ratio": 3.0, "num_heads": 1,
    "axes_dim": [32, 32, 32, 32], "theta": 2000, "patch_size": 1, "qkv_bias": False, "txt_ids_dims": [3],
    "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
}  # fmt: skip


def flux(**changes):
    def make():
        from comfy.ldm.flux.model import Flux

        return transformer(Flux, {**FLUX_LAYOUT, **changes})

    return Family("Flux", make, (16, 8, 8), None)


# As deep as the files that the host takes for USO's.
DEEP, FLUX2 = flux(depth=19, depth_single_blocks=38), flux(**FLUX2_LAYOUT)


def small_flux2():
    torch.manual_seed(0)
    return diffusers.Flux2Transformer2DModel(
        num_layers=1, num_single_layers=1, num_attention_heads=1, attention_head_dim=128, joint_attention_dim=64,
        in_channels=16,
    )  # fmt: skip


def factors(modules, up, down):
    """LoRAs by module, with rows and columns of each; no two alike."""
    tensors = {}
    for number, (module, shape) in enumerate(modules.items()):
        tensors |= {module + part: tensor + number for part, tensor in lora(*shape, up=up, down=down).items()}
    return tensors


def saved(path, tensors):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def xlabs_double(block):
    return {f"double_blocks.{block}.processor.{layer}_lora{stream}": (rows, WIDTH)
            for layer, rows in (("qkv", 3 * WIDTH), ("proj", WIDTH)) for stream in (1, 2)}  # fmt: skip


def xlabs_single(block):
    return {f"single_blocks.{block}.processor.qkv_lora": (3 * WIDTH, WIDTH),
            f"single_blocks.{block}.processor.proj_lora": (WIDTH, 5 * WIDTH)}  # fmt: skip


def test_a_file_of_usos_changes_what_it_changes_in_comfyui(comfy, tmp_path):
    base = family_file(DEEP, tmp_path / "base.safetensors")
    modules = xlabs_double(0) | xlabs_double(18) | xlabs_single(0) | xlabs_single(37)
    path = saved(tmp_path / "uso.safetensors", factors(modules, "up.weight", "down.weight"))
    names = assert_same_as_the_hosts(read_delta(path, base, density=1.0).delta, DEEP.model(), path)
    assert len(names) == len(modules)


def test_xlabs_names_are_those_of_the_same_layers(comfy, tmp_path):
    """ComfyUI itself only reads them in files as deep as USO's."""
    base = family_file("Flux", tmp_path / "base.safetensors")
    path = saved(tmp_path / "xlabs.safetensors", factors(xlabs_double(0), "up.weight", "down.weight"))
    layers = {f"diffusion_model.double_blocks.0.{stream}_attn.{layer}": (rows, WIDTH)  # in the same order
              for layer, rows in (("qkv", 3 * WIDTH), ("proj", WIDTH)) for stream in ("img", "txt")}  # fmt: skip
    plain = saved(tmp_path / "plain.safetensors", factors(layers, "lora_up.weight", "lora_down.weight"))
    ours = dense(read_delta(path, base, density=1.0).delta)
    assert ours.keys() == {f"{layer}.weight" for layer in layers}
    assert_equal_weights(ours, dense(read_delta(plain, base, density=1.0).delta))


def control(width):
    """A control LoRA as Black Forest Labs publishes them: factors, biases, norms, and a first layer of `width`."""
    modules = {"img_in": (WIDTH, width), "double_blocks.0.img_attn.qkv": (3 * WIDTH, WIDTH),
               "single_blocks.0.linear1": (7 * WIDTH, WIDTH)}  # fmt: skip
    tensors = factors(modules, "lora_B.weight", "lora_A.weight")
    tensors |= {f"{module}.lora_B.bias": random(rows) for module, (rows, _) in modules.items()}
    norms = ("double_blocks.0.img_attn.norm.key_norm.scale", "single_blocks.0.norm.key_norm.scale")
    return tensors | {name: random(WIDTH, seed=number) for number, name in enumerate(norms)}


def test_a_control_lora_changes_what_it_changes_in_comfyui(comfy, tmp_path):
    base = family_file("Flux", tmp_path / "base.safetensors")
    path = saved(tmp_path / "control.safetensors", control(64))
    names = assert_same_as_the_hosts(read_delta(path, base, density=1.0).delta, FAMILIES["Flux"].model(), path)
    assert len(names) == 8


def test_a_control_lora_that_widens_the_first_layer_is_refused_by_its_name(comfy, tmp_path):
    base = family_file("Flux", tmp_path / "base.safetensors")
    with pytest.raises(DeltaError, match="'img_in' larger.*control LoRA.*keeps every shape"):
        read_delta(saved(tmp_path / "control.safetensors", control(128)), base, density=0.1)


def test_a_layer_that_keeps_its_size_may_say_so(comfy, tmp_path):
    base = family_file("Flux", tmp_path / "base.safetensors")
    tensors = factors({"diffusion_model.img_in": (WIDTH, 64)}, "lora_up.weight", "lora_down.weight")
    size = {"diffusion_model.img_in.reshape_weight": torch.tensor([WIDTH, 64])}
    path = saved(tmp_path / "x.safetensors", tensors | size)
    assert_same_as_the_hosts(read_delta(path, base, density=1.0).delta, FAMILIES["Flux"].model(), path)


def test_wan_funs_names_with_two_underscores_are_known(comfy, tmp_path):
    base = family_file("Wan 2.1", tmp_path / "base.safetensors")
    modules = {f"lora_unet__blocks_{block}_cross_attn_{layer}": (128, 128) for block in (0, 1) for layer in "kq"}
    path = saved(tmp_path / "fun.safetensors", factors(modules, "lora_up.weight", "lora_down.weight"))
    assert_same_as_the_hosts(read_delta(path, base, density=1.0).delta, FAMILIES["Wan 2.1"].model(), path)


FLUX2_MODULES = {
    "transformer_blocks.0.attn.to_k": (128, 128),
    "transformer_blocks.0.attn.add_v_proj": (128, 128),
    "transformer_blocks.0.attn.to_out.0": (128, 128),
    "transformer_blocks.0.ff.linear_in": (768, 128),
    "transformer_blocks.0.ff_context.linear_out": (128, 384),
    "single_transformer_blocks.0.attn.to_qkv_mlp_proj": (1152, 128),
    "single_transformer_blocks.0.attn.to_out": (128, 512),
    "x_embedder": (128, 16),
    "norm_out.linear": (256, 128),
    "proj_out": (128, 128),
}


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_a_flux2_lora_of_diffusers_changes_what_it_changes_in_comfyui(comfy, tmp_path, prefix):
    base = family_file(FLUX2, tmp_path / "base.safetensors")
    modules = {prefix + module: shape for module, shape in FLUX2_MODULES.items()}
    path = saved(tmp_path / "x.safetensors", factors(modules, "lora_B.weight", "lora_A.weight"))
    assert len(assert_same_as_the_hosts(read_delta(path, base, density=1.0).delta, FLUX2.model(), path)) == len(modules)


def test_every_name_that_comfyui_knows_for_a_module_of_flux2_is_known(comfy, tmp_path):
    import comfy.lora

    from sara_core.conversion.adapters.names import places

    keys = comfy.lora.model_lora_keys_unet(FLUX2.model().model, {})
    with opened_base(family_file(FLUX2, tmp_path / "base.safetensors")) as base:
        known, shapes = places(base), base.shapes
    checked = 0
    for alias, place in keys.items():
        key, offset, function = (*((place,) if isinstance(place, str) else place), None, None)[:3]
        if key.removeprefix("diffusion_model.") not in shapes or "proj_mlp" in alias:
            continue  # Flux.2 has no proj_mlp: the host gives the rows that Flux would have
        part, checked = known.get(alias), checked + 1
        assert part is not None and f"diffusion_model.{part.name}" == key, alias
        rows = shapes[part.name][0] // part.whole
        assert part.swapped == (function is not None), alias
        assert offset in (None, (0, rows * part.first, rows * part.size)) and (offset or part.whole == 1), alias
    assert checked > 150


def test_flux2_is_told_by_either_sides_names_and_has_every_parameter(comfy):
    own = {name: tuple(tensor.shape) for name, tensor in small_flux2().state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in FLUX2.state_dict().items()}
    parts = diffusers_parts(own)
    assert parts.keys() == own.keys() and diffusers_parts(theirs) == parts
    assert family(own) == family(theirs) == "Flux.2"
    whole = {part.name: part.whole_shape(own[name]) for name, part in parts.items()}
    # The host takes 128 channels out for granted.
    assert whole | {"final_layer.linear.weight": (128, 128)} == theirs


def test_fused_weights_of_flux2_hold_the_parts_as_diffusers_takes_them_apart(comfy, tmp_path):
    from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers

    model = small_flux2()
    whole = weights_of(pipeline_folder(tmp_path / "flux2", model))
    original = {name.removeprefix("diffusion_model."): tensor for name, tensor in whole.items()}
    renamed = {name.replace("_norm.weight", "_norm.scale"): tensor for name, tensor in original.items()}
    assert_equal_weights(convert_flux2_transformer_checkpoint_to_diffusers(renamed), model.state_dict())


@pytest.mark.parametrize("name", ["single_blocks.0.linear1.weight", "double_blocks.0.txt_mlp.0.weight",
                                  "single_stream_modulation.lin.weight"])  # fmt: skip
def test_one_layer_of_flux2_tells_it_from_flux(comfy, name):
    shape = tuple(FLUX2.state_dict()[name].shape)
    assert family({name: shape}) == "Flux.2"
    assert family({name: (shape[0] // 9 * 7, shape[1])}) == ("Flux.2" if "modulation" in name else "Flux")


@pytest.mark.parametrize("module", ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.img_mlp.net.0.proj"])
def test_models_whose_blocks_only_resemble_flux_keep_their_names(tmp_path, module):
    """Such as Qwen-Image's, which has the same names in diffusers and ComfyUI."""
    names = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.img_mlp.net.0.proj", "img_in")
    weights = {f"{name}.weight": random(16, 16) for name in names}
    save_file(weights, tmp_path / "base.safetensors")
    path = saved(tmp_path / "x.safetensors", factors({f"transformer.{module}": (16, 16)}, "lora_B.weight",
                                                     "lora_A.weight"))  # fmt: skip
    delta = read_delta(path, tmp_path / "base.safetensors", density=1.0).delta
    assert delta.entries.keys() == {f"diffusion_model.{module}.weight"}


def test_z_images_names_in_diffusers_are_those_of_comfyuis_own_table(comfy, tmp_path):
    import comfy.utils

    from sara_core.conversion.adapters.names import places

    table = comfy.utils.z_image_to_diffusers({"n_layers": 2, "dim": 16, "n_refiner_layers": 1})
    names = {place if isinstance(place, str) else place[0] for place in table.values()}
    shapes = {name: (48, 16) if ".qkv." in name else (16, 16) for name in names}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "base.safetensors")
    with opened_base(tmp_path / "base.safetensors") as base:
        known = places(base)
    for own, place in table.items():
        name, offset = (place, None) if isinstance(place, str) else place
        if own.endswith(".weight"):
            module = own.removesuffix(".weight")
            for alias in (module, f"transformer.{module}", f"diffusion_model.{module}",
                          "lycoris_" + module.replace(".", "_")):  # fmt: skip
                part = known[alias]
                assert part.name == name and offset in (None, (0, 16 * part.first, 16)), alias
                assert (offset is None) == (part.whole == 1), alias
