"""The names of text encoders' modules in adapter files, with the key maps of the stock loaders as the measure."""

import pytest
import torch

from sara_core.names.text_encoders import encoders_of, titles_of
from sara_core.names.text_modules import own_module

LAYER = "text_encoders.clip_l.transformer.text_model.encoder.layers.3.self_attn.q_proj"


def host_encoders(name):
    """The host's own text encoders of a family, of their real sizes, without memory."""
    from comfy import sd1_clip, sdxl_clip
    from comfy.text_encoders import flux, sd2_clip, sd3_clip, wan

    makers = {
        "SD1.5": sd1_clip.SD1ClipModel,
        "SD2.1": sd2_clip.SD2ClipModel,
        "SDXL": sdxl_clip.SDXLClipModel,
        "SDXL Refiner": sdxl_clip.SDXLRefinerClipModel,
        "SD3": sd3_clip.sd3_clip(dtype_t5=torch.float16),
        "Flux": flux.flux_clip(dtype_t5=torch.float16),
        "Wan 2.1": wan.te(),
    }
    with torch.device("meta"):
        return makers[name](device="meta")


@pytest.mark.parametrize("family", ["SD1.5", "SD2.1", "SDXL", "SDXL Refiner", "SD3", "Flux", "Wan 2.1"])
def test_every_name_that_the_stock_loaders_know_means_the_same_weight(comfy, family):
    import comfy.lora

    known = comfy.lora.model_lora_keys_clip(host_encoders(family), {})
    assert len(known) > 72
    wrong = {name: (key, found) for name, key in known.items()
             if (found := own_module(name, family)) != f"text_encoders.{key.removesuffix('.weight')}"}  # fmt: skip
    assert not dict(list(wrong.items())[:3])


@pytest.mark.parametrize(
    "name, family, own",
    [
        ("text_encoder.text_model.encoder.layers.3.self_attn.q_proj", "SDXL", LAYER),
        ("text_encoder.text_model.encoder.layers.3.self_attn.to_q", "SD1.5", LAYER),
        ("text_encoder.base_model.model.text_model.encoder.layers.3.self_attn.q_proj", None, LAYER),
        ("base_model.model.text_model.encoder.layers.3.self_attn.q_proj", "SD1.5", LAYER),
        ("text_encoder.encoder.layers.3.self_attn.q_proj", "Flux", LAYER),
        ("lora_te1_encoder_layers_3_self_attn_q_proj", "SDXL", LAYER),
        ("lora_te_encoder_layers_3_layer_norm2", "SD1.5", LAYER.replace("self_attn.q_proj", "layer_norm2")),
        ("lora_te2_embeddings_token_embedding", "SDXL",
         "text_encoders.clip_g.transformer.text_model.embeddings.token_embedding"),
        ("lora_te_final_layer_norm", "SD2.1", "text_encoders.clip_h.transformer.text_model.final_layer_norm"),
        ("clip_l.transformer.text_model.encoder.layers.3.self_attn.q_proj", "Flux", LAYER),
        ("text_encoder_2.text_model.encoder.layers.3.self_attn.q_proj", "SD3", LAYER.replace("clip_l", "clip_g")),
        ("text_encoder_2.text_projection", "SDXL", "text_encoders.clip_g.transformer.text_projection"),
        ("text_encoder_2.encoder.block.1.layer.0.SelfAttention.q", "Flux",
         "text_encoders.t5xxl.transformer.encoder.block.1.layer.0.SelfAttention.q"),
        ("text_encoder_3.encoder.block.1.layer.1.DenseReluDense.wi_0", "SD3",
         "text_encoders.t5xxl.transformer.encoder.block.1.layer.1.DenseReluDense.wi_0"),
        ("lora_te_encoder_block_1_layer_1_DenseReluDense_wi_0", "Wan 2.1",
         "text_encoders.umt5xxl.transformer.encoder.block.1.layer.1.DenseReluDense.wi_0"),
        ("text_encoders.qwen3_4b.transformer.model.layers.5.mlp.up_proj", "Z-Image",
         "text_encoders.qwen3_4b.transformer.model.layers.5.mlp.up_proj"),
        ("text_encoder.model.language_model.layers.5.mlp.up_proj", "Qwen-Image",
         "text_encoders.qwen25_7b.transformer.model.layers.5.mlp.up_proj"),
        ("lora_te_layers_5_self_attn_q_proj", "Z-Image",
         "text_encoders.qwen3_4b.transformer.model.layers.5.self_attn.q_proj"),
        ("lora_te_layers_5_self_attn_q_proj", None, None),
        ("lora_te3_text_model_encoder_layers_3_mlp_fc1", "SD3", None),
        ("lora_unet_input_blocks_1_1_proj_in", "SD1.5", None),
        ("first_stage_model.encoder.conv_in", "SD1.5", None),
        ("text_encoder.something.else", "SD1.5", None),
    ],
)  # fmt: skip
def test_names_of_trainers(name, family, own):
    assert own_module(name, family) == own


def test_encoders_are_named_as_people_know_them():
    names = [LAYER.replace("clip_l", encoder) for encoder in ("my_own", "t5xxl", "clip_g", "clip_l")]
    assert encoders_of([*names, "diffusion_model.x"]) == ["clip_l", "clip_g", "t5xxl", "my_own"]
    assert titles_of(names) == "CLIP-L, CLIP-G, T5-XXL and my_own"
