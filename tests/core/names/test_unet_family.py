"""The families in SDXL's layout are told apart, by the names of either side, and called what the host calls them."""

import pytest
import torch
from safetensors.torch import save_file

from sara_core import extract
from sara_core.delta.modelspec import architecture
from sara_core.names.diffusers import diffusers_parts, family

LAYOUT = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
    "use_linear_in_transformer": True, "num_classes": "sequential", "num_heads": -1, "num_head_channels": 64,
}  # fmt: skip
SDXL = {**LAYOUT, "adm_in_channels": 2816, "context_dim": 2048, "model_channels": 320, "channel_mult": [1, 2, 4]}
THREE, TWO = {**SDXL, "num_res_blocks": [2, 2, 2]}, {**SDXL, "num_res_blocks": [1, 1, 1]}


def depths(down, middle, up):
    return {"transformer_depth": down, "transformer_depth_middle": middle, "transformer_depth_output": up}


LAYOUTS = {
    "SDXL": {**THREE, **depths([0, 0, 2, 2, 10, 10], 10, [0, 0, 0, 2, 2, 2, 10, 10, 10])},
    "SSD-1B": {**THREE, **depths([0, 0, 2, 2, 4, 4], -1, [0, 0, 0, 1, 1, 2, 10, 4, 4])},
    "Segmind Vega": {**THREE, **depths([0, 0, 1, 1, 2, 2], -1, [0, 0, 0, 1, 1, 1, 2, 2, 2])},
    "KOALA 700M": {**TWO, **depths([0, 2, 5], -2, [0, 0, 2, 2, 5, 5])},
    "KOALA 1B": {**TWO, **depths([0, 2, 6], 6, [0, 0, 2, 2, 6, 6])},
    "SDXL Refiner": {
        **LAYOUT, "adm_in_channels": 2560, "context_dim": 1280, "model_channels": 384, "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": [2, 2, 2, 2], **depths([0, 0, 4, 4, 4, 4, 0, 0], 4, [0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0]),
    },
}  # fmt: skip


def meta_weights(layout):
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"):
        return UNetModel(**layout).state_dict()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_family_is_called_the_same_by_the_library_and_the_host(comfy, name):
    from comfy.model_detection import model_config_from_unet

    weights = meta_weights(LAYOUTS[name])
    shapes = {own: tuple(weight.shape) for own, weight in weights.items()}
    config = model_config_from_unet(weights, "")
    host = comfy.pack_module("nodes.host.family")
    assert host.NAMES[type(config).__name__] == family(shapes) == name
    assert family({own: shapes[part.name] for own, part in diffusers_parts(shapes).items()}) == name


@pytest.mark.parametrize("chosen", ["input_blocks.4.1", "output_blocks", "input_blocks.7.1.transformer_blocks.0."])
def test_a_few_names_of_sdxl_are_taken_for_sdxl(comfy, chosen):
    weights = meta_weights(LAYOUTS["SDXL"])
    assert family({own: tuple(w.shape) for own, w in weights.items() if own.startswith(chosen)}) == "SDXL"


def test_an_extracted_delta_says_the_smaller_family(comfy, tmp_path):
    layout = {**LAYOUTS["SSD-1B"], "model_channels": 32, "num_head_channels": 16}
    generator = torch.Generator().manual_seed(0)
    base = {f"model.diffusion_model.{own}": torch.randn(weight.shape, generator=generator)
            for own, weight in meta_weights(layout).items()}  # fmt: skip
    save_file(base, tmp_path / "base.safetensors")
    base["model.diffusion_model.out.2.weight"] += 1
    save_file(base, tmp_path / "tuned.safetensors")
    delta = extract(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    assert delta.metadata["sara.family"] == "SSD-1B" and architecture("SSD-1B") == "ssd-1b/sara"
