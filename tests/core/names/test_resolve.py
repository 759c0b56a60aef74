"""Names of diffusers, of LDM checkpoints and of ComfyUI: compared, for every parameter, with the models themselves."""

import math

import diffusers
import pytest
import torch

from sara_core.delta import SparseDelta, SparseEntry
from sara_core.delta.translate import dense_to_comfy, dense_to_diffusers, to_comfy, to_diffusers
from sara_core.errors import DeltaError
from sara_core.names.diffusers import diffusers_parts, family, is_diffusers

SD2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
FOUR_LEVELS = {"num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0] * 2,
               "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1}  # fmt: skip

# The same model for diffusers and for ComfyUI.
UNETS = {
    "SD1.5": ({"cross_attention_dim": 768, "attention_head_dim": 8}, {**FOUR_LEVELS, "context_dim": 768}),
    "SD2.x": (SD2, {**FOUR_LEVELS, "context_dim": 1024, "use_linear_in_transformer": True}),
    "SD2.x unCLIP": (
        {**SD2, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 2048},
        {**FOUR_LEVELS, "context_dim": 1024, "use_linear_in_transformer": True, "adm_in_channels": 2048},
    ),
    "SDXL": (
        SDXL,
        {"num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
         "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
         "context_dim": 2048, "use_linear_in_transformer": True, "adm_in_channels": 2816},
    ),
    "one block a level": (
        {**SDXL, "layers_per_block": 1, "transformer_layers_per_block": [1, 2, 5]},
        {"num_res_blocks": [1] * 3, "channel_mult": [1, 2, 4], "transformer_depth": [0, 2, 5],
         "transformer_depth_output": [0, 0, 2, 2, 5, 5], "transformer_depth_middle": 5, "context_dim": 2048,
         "use_linear_in_transformer": True, "adm_in_channels": 2816},
    ),
    "three blocks a level": (
        {"block_out_channels": (320, 640), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
         "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "layers_per_block": 3, "cross_attention_dim": 768},
        {"num_res_blocks": [3, 3], "channel_mult": [1, 2], "transformer_depth": [1] * 3 + [0] * 3,
         "transformer_depth_output": [1] * 4 + [0] * 4, "transformer_depth_middle": 1, "context_dim": 768},
    ),
    "one level": (
        {"block_out_channels": (320,), "down_block_types": ("CrossAttnDownBlock2D",),
         "up_block_types": ("CrossAttnUpBlock2D",), "layers_per_block": 1, "cross_attention_dim": 768},
        {"num_res_blocks": [1], "channel_mult": [1], "transformer_depth": [1], "transformer_depth_output": [1, 1],
         "transformer_depth_middle": 1, "context_dim": 768},
    ),
}  # fmt: skip
SD3 = {"num_layers": 24, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536}
TRANSFORMERS = {
    "SD3": (diffusers.SD3Transformer2DModel, {**SD3, "pos_embed_max_size": 192}),
    "SD3.5": (
        diffusers.SD3Transformer2DModel,
        {**SD3, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm", "pos_embed_max_size": 384},
    ),
    "Flux": (diffusers.FluxTransformer2DModel, {"guidance_embeds": True}),
}
SMALL = {
    "SD3": (
        diffusers.SD3Transformer2DModel,
        {"num_layers": 2, "num_attention_heads": 2, "joint_attention_dim": 32, "caption_projection_dim": 128,
         "pooled_projection_dim": 16, "pos_embed_max_size": 8, "sample_size": 8, "dual_attention_layers": (0,),
         "qk_norm": "rms_norm"},
    ),
    "Flux": (
        diffusers.FluxTransformer2DModel,
        {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 64,
         "joint_attention_dim": 32, "pooled_projection_dim": 16, "axes_dims_rope": (16, 24, 24),
         "guidance_embeds": True},
    ),
}  # fmt: skip
MODELS = {name: (diffusers.UNet2DConditionModel, own) for name, (own, _) in UNETS.items()} | TRANSFORMERS


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def models():
    """Model → diffusers' parameters and their shapes, as diffusers itself makes them."""
    with torch.device("meta"):
        return {name: shapes_of(kind(**config)) for name, (kind, config) in MODELS.items()}


def comfy_shapes(own):
    """The parameters on ComfyUI's side, by our own table."""
    parts = diffusers_parts(own)
    return {parts[name].name: parts[name].whole_shape(shape) for name, shape in own.items()}


def hosts_table(name):
    """ComfyUI's own table: diffusers name → name, (name, (0, first row, rows)) or (name, None, function)."""
    import comfy.utils

    if name in UNETS:
        return comfy.utils.unet_to_diffusers(UNETS[name][1])
    if name == "Flux":
        return comfy.utils.flux_to_diffusers({"depth": 19, "depth_single_blocks": 38, "hidden_size": 3072})
    return comfy.utils.mmdit_to_diffusers({"depth": 24})


def hosts_model(name):
    """The network as ComfyUI makes it, without memory for its weights."""
    import comfy.ldm.flux.model
    import comfy.ldm.modules.diffusionmodules.mmdit as mmdit
    import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel
    import comfy.ops

    common = {"device": "meta", "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}
    if name in UNETS:
        config = UNETS[name][1]
        labels = {"num_classes": "sequential"} if "adm_in_channels" in config else {}
        return openaimodel.UNetModel(
            image_size=32, in_channels=4, out_channels=4, model_channels=320, num_head_channels=64,
            use_spatial_transformer=True, legacy=False, **labels, **config, **common,
        )  # fmt: skip
    if name == "Flux":
        return comfy.ldm.flux.model.Flux(
            in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096, hidden_size=3072, mlp_ratio=4.0,
            num_heads=24, depth=19, depth_single_blocks=38, axes_dim=[16, 56, 56], theta=10000, patch_size=2,
            qkv_bias=True, guidance_embed=True, txt_ids_dims=[], **common,
        )  # fmt: skip
    return mmdit.MMDiT(
        depth=24, input_size=None, patch_size=2, in_channels=16, adm_in_channels=2048, pos_embed_scaling_factor=None,
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
        num_patches=192**2 if name == "SD3" else 384**2, pos_embed_max_size=192 if name == "SD3" else 384,
        qk_norm="rms" if name == "SD3.5" else None, x_block_self_attn_layers=list(range(13)) if name == "SD3.5" else [],
        **common,
    )  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_place_is_the_one_that_comfyui_has(comfy, models, name):
    own, hosts = models[name], hosts_table(name)
    parts = diffusers_parts(own)
    assert parts.keys() == own.keys()
    for parameter, part in parts.items():
        place = hosts[parameter]
        place, rows, function = (*((place,) if isinstance(place, str) else place), None, None)[:3]
        assert (part.name, part.swapped) == (place, function is not None), parameter
        first_row = part.begin(own[parameter]) // math.prod(own[parameter][1:])
        assert rows in (None, (0, first_row, own[parameter][0])) and (rows or not first_row), parameter


@pytest.mark.parametrize("name", MODELS)
def test_the_places_make_up_comfyuis_model_exactly(comfy, models, name):
    assert comfy_shapes(models[name]) == shapes_of(hosts_model(name))


def edges_and_middle(shape):
    """Positions at both ends of every part that a weight may have, and in between."""
    numel = math.prod(shape)
    marks = {numel * i // 42 for i in range(43)}
    return torch.tensor(sorted({p for mark in marks for p in (mark - 1, mark) if 0 <= p < numel}), dtype=torch.int32)


def entries_for(shapes):
    generator = torch.Generator().manual_seed(0)
    positions = {name: edges_and_middle(shape) for name, shape in shapes.items()}
    return {
        name: SparseEntry(index, torch.randn(len(index), generator=generator), shapes[name])
        for name, index in positions.items()
    }


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, (indices, values, shape) in first.items():
        assert second[name].shape == shape, name
        assert second[name].indices.dtype == torch.int32
        assert torch.equal(second[name].indices, indices) and torch.equal(second[name].values, values), name


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_the_identity_for_every_parameter(models, name):
    parts = diffusers_parts(models[name])
    own, theirs = entries_for(models[name]), entries_for(comfy_shapes(models[name]))
    assert_same(own, to_diffusers(to_comfy(own, parts), parts))
    assert_same(theirs, to_comfy(to_diffusers(theirs, parts), parts))


@pytest.mark.parametrize("name", MODELS)
def test_either_sides_names_give_the_same_places(models, name):
    theirs, parts = comfy_shapes(models[name]), diffusers_parts(models[name])
    assert diffusers_parts(theirs) == parts
    assert not is_diffusers(theirs, parts) and is_diffusers(models[name], parts)


@pytest.mark.parametrize("name, words", [("SD1.5", "SD1.5"), ("SD2.x", "SD2.1"), ("SDXL", "SDXL"), ("SD3", "SD3"),
                                         ("SD3.5", "SD3"), ("Flux", "Flux")])  # fmt: skip
def test_the_family_is_told_by_either_sides_names(models, name, words):
    assert family(models[name]) == family(comfy_shapes(models[name])) == words


def converted(own):
    """By ComfyUI, which writes into the tensors it is given."""
    import comfy.model_detection

    return comfy.model_detection.convert_diffusers_mmdit({name: tensor.clone() for name, tensor in own.items()})


@pytest.fixture(params=SMALL)
def small(comfy, request):
    """A small model's weights as diffusers has them, and as ComfyUI converts them."""
    torch.manual_seed(0)
    kind, config = SMALL[request.param]
    own = {name: torch.randn(tensor.shape) for name, tensor in kind(**config).state_dict().items()}
    return own, converted(own)


def test_fused_weights_hold_the_parts_as_comfyui_puts_them(small):
    own, theirs = small
    parts = diffusers_parts({name: tuple(tensor.shape) for name, tensor in own.items()})
    whole = {part.name: torch.empty(part.whole_shape(tuple(own[name].shape))) for name, part in parts.items()}
    for name, part in parts.items():
        piece = dense_to_comfy(own[name], part).reshape(-1)
        begin = part.begin(tuple(own[name].shape))
        whole[part.name].view(-1)[begin : begin + len(piece)] = piece
        assert torch.equal(dense_to_diffusers(theirs[part.name], part), own[name]), name
    assert whole.keys() == theirs.keys()
    assert all(torch.equal(whole[name], theirs[name]) for name in theirs)


def test_a_delta_does_the_same_under_either_sides_names(small):
    own, theirs = small
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    entries = entries_for(shapes)
    SparseDelta(entries).apply_(own)
    SparseDelta(to_comfy(entries, diffusers_parts(shapes))).apply_(theirs)
    changed = converted(own)
    assert changed.keys() == theirs.keys()
    assert all(torch.equal(changed[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("name", ["SD1.5", "SD2.x", "SDXL", "Flux"])
@pytest.mark.parametrize("side", ["diffusers", "ComfyUI"])
def test_some_layers_of_the_usual_models_are_known_without_the_others(models, name, side):
    shapes = models[name] if side == "diffusers" else comfy_shapes(models[name])
    chosen = {name: shape for name, shape in shapes.items() if "attn" in name or name.startswith("single_")}
    whole, some = diffusers_parts(models[name]), diffusers_parts(chosen)
    assert some and some.items() <= whole.items()
    places = some if side == "diffusers" else {part.name for part in some.values()}
    assert set(places) == set(chosen)


@pytest.mark.parametrize("side", ["diffusers", "ComfyUI"])
def test_some_layers_of_a_usual_unet_with_up_and_downsamplers_are_known(models, side):
    for name in ("SD1.5", "SDXL"):
        shapes = models[name] if side == "diffusers" else comfy_shapes(models[name])
        chosen = {name: shape for name, shape in shapes.items() if len(shape) > 1}
        assert diffusers_parts(chosen).items() <= diffusers_parts(models[name]).items()
        assert len(diffusers_parts(chosen)) == len(chosen)


def test_layers_that_contradict_the_usual_layout_are_refused_without_their_model(models):
    for name in ("one block a level", "three blocks a level"):
        own = entries_for({name: shape for name, shape in models[name].items() if "norm" not in name})
        theirs = to_comfy(own, diffusers_parts(models[name]))
        for entries, translate in ((own, to_comfy), (theirs, to_diffusers)):
            with pytest.raises(DeltaError, match="give the base model"):
                translate(entries, diffusers_parts({name: entry.shape for name, entry in entries.items()}))


def test_an_upsampler_alone_does_not_tell_its_place(models):
    entries = {name: entry for name, entry in entries_for(models["SD1.5"]).items() if "up_blocks.0.upsamplers" in name}
    assert entries
    with pytest.raises(DeltaError, match="give the base model"):
        to_comfy(entries, diffusers_parts({name: entry.shape for name, entry in entries.items()}))


def test_blocks_that_sd3_and_flux_share_are_refused_without_their_model(models):
    shapes = {name: shape for name, shape in models["Flux"].items() if name.startswith("transformer_blocks.")}
    with pytest.raises(DeltaError, match="Give the base model"):
        diffusers_parts(shapes)


def test_a_lone_bias_of_sd3s_modulation_does_not_tell_its_block(models):
    name = "transformer_blocks.23.norm1_context.linear.bias"
    shapes = {name: models["SD3"][name], "pos_embed.proj.weight": models["SD3"]["pos_embed.proj.weight"]}
    with pytest.raises(DeltaError, match="without the base model"):
        diffusers_parts(shapes)


@pytest.mark.parametrize("name, shape", [("attn.to_q", (0, 1, 7)), ("proj_mlp", (3, 4, 7))])
def test_a_shape_that_cannot_be_divided_is_refused(models, name, shape):
    parts = diffusers_parts(models["Flux"])
    own = f"single_transformer_blocks.0.{name}.weight"
    assert parts[own][1:4] == shape
    entry = SparseEntry(torch.zeros(1, dtype=torch.int32), torch.ones(1), (22, 5))
    with pytest.raises(DeltaError, match="cannot have the shape"):
        to_diffusers({parts[own].name: entry}, parts)


def test_models_of_other_families_have_no_places():
    assert diffusers_parts({"encoder.layer.0.weight": (3, 4), "head.bias": (4,)}) == {}
    assert family({"encoder.layer.0.weight": (3, 4)}) is None
