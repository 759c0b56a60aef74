"""Cases of transformers that make videos."""

from dataclasses import replace

import torch

from .case import Case, normal, ones, seen, several, text

_LATENT = (16, 2, 8, 8)
_MASKED = {"concat_latent_image": normal(1, *_LATENT), "concat_mask": ones(1, 4, 2, 8, 8)}
_REFERENCE = {"reference_latents": several(normal(1, 16, 1, 8, 8))}
_CLIP = {"clip_vision_output": seen(257, 1280)}

_WAN = {"dim": 128, "ffn_dim": 256, "num_heads": 1, "num_layers": 2, "text_dim": 48}


def _wan(config, variant="", options=None, latent=_LATENT, **layout) -> Case:
    return Case(config, variant, {**_WAN, **layout}, latent, text(48, **(options or {})))


_HUNYUAN = {
    "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "vec_in_dim": 40, "axes_dim": [16, 56, 56],
    "meanflow": False, "meanflow_sum": False, "context_in_dim": 48, "hidden_size": 128, "mlp_ratio": 2.0,
    "num_heads": 1, "depth": 1, "depth_single_blocks": 1, "theta": 256, "qkv_bias": True, "byt5": False,
    "guidance_embed": True, "use_cond_type_embedding": False, "vision_in_dim": None,
}  # fmt: skip
_HUNYUAN_15 = {
    **_HUNYUAN, "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "vec_in_dim": None,
    "meanflow_sum": True,
    "guidance_embed": False, "use_cond_type_embedding": True, "vision_in_dim": 1152, "byt5": True,
}  # fmt: skip

_CAPTION_15 = {"pooled_output": None, "conditioning_byt5small": normal(1, 5, 1472)}


def _hunyuan(config="HunyuanVideo", variant="", options=None, **layout) -> Case:
    caption = text(48, pooled_output=normal(1, 40), **(options or {}))
    return Case(config, variant, {**_HUNYUAN, **layout}, _LATENT, caption)


_COSMOS = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1,
    "model_channels": 256, "num_blocks": 1, "num_heads": 2, "crossattn_emb_channels": 48, "pos_emb_cls": "rope3d",
    "use_adaln_lora": True, "adaln_lora_dim": 32,
}  # fmt: skip
_COSMOS_1 = {
    **_COSMOS, "block_x_format": "THWBD", "affline_emb_norm": True, "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable",
}  # fmt: skip
_COSMOS_2 = {**_COSMOS, "pos_emb_learnable": True, "rope_enable_fps_modulation": False}
_COG = {
    "num_attention_heads": 2, "time_embed_dim": 32, "text_embed_dim": 48, "num_layers": 1, "sample_width": 16,
    "sample_height": 16, "sample_frames": 5, "max_text_seq_length": 12, "use_rotary_positional_embeddings": True,
}  # fmt: skip
_LTX = {"cross_attention_dim": 128, "attention_head_dim": 64, "num_attention_heads": 2, "caption_channels": 48,
        "num_layers": 2}  # fmt: skip
_CAPTION_MASK = {"attention_mask": ones(1, 12, dtype=torch.long)}

CASES = [
    _wan("WAN21_T2V"),
    _wan("WAN21_CausalAR_T2V"),
    _wan("WAN21_I2V", "", {**_MASKED, **_CLIP}),
    _wan("WAN21_I2V", "first and last frame", {**_MASKED, "clip_vision_output": seen(514, 1280)},
         flf_pos_embed_token_number=514),
    _wan("WAN21_T2V", "A14B I2V", _MASKED, in_dim=36),
    _wan("WAN21_T2V", "with context latents", {"context_latents": several(normal(1, 16, 1, 8, 8))}),
    _wan("WAN21_FunControl2V", "", {"concat_latent_image": normal(1, 32, 2, 8, 8), **_CLIP}),
    _wan("WAN21_FunControl2V", "with a reference", {"concat_latent_image": normal(1, 32, 2, 8, 8), **_CLIP,
                                                    **_REFERENCE}, in_dim_ref_conv=16),
    _wan("WAN21_Vace", "", {"vace_frames": several(normal(1, 32, 2, 8, 8)),
                            "vace_mask": several(ones(1, 64, 2, 8, 8)), "vace_strength": [1.0]},
         vace_layers=1, vace_in_dim=96),
    _wan("WAN21_Camera", "", {"camera_conditions": normal(1, 24, 2, 64, 64),
                              "concat_latent_image": normal(1, 16, 2, 8, 8), **_CLIP}),
    _wan("WAN22_Camera", "", {"camera_conditions": normal(1, 24, 2, 64, 64), **_MASKED}),
    _wan("WAN22_S2V", "", {"audio_embed": normal(1, 25, 1024, 8), **_REFERENCE}, audio_inject_layers=[0]),
    _wan("WAN21_HuMo", "1.7B", {"audio_embed": normal(1, 2, 8, 5, 1280), **_REFERENCE}),
    _wan("WAN21_HuMo", "17B", {"audio_embed": normal(1, 2, 8, 5, 1280), **_REFERENCE}, in_dim=36),
    # The network that reads faces is of one size, for pictures of 512 × 512, and takes minutes.
    _wan("WAN22_Animate", "without a face", {**_MASKED, **_CLIP, "pose_video_latent": normal(1, 16, 1, 8, 8)},
         in_dim=36, num_layers=5),
    _wan("WAN22_T2V", "5B", latent=(48, 2, 4, 4), in_dim=48),
    replace(_wan("WAN22_T2V", "5B I2V", latent=(48, 2, 4, 4), in_dim=48), noise_mask=(1, 1, 2, 4, 4)),
    _wan("WAN21_FlowRVS"),
    _wan("WAN21_SCAIL", "", {**_REFERENCE, "pose_video_latent": normal(1, 16, 2, 4, 4)}, in_dim=20),
    _wan("WAN21_SCAIL2", "", {**_REFERENCE, "pose_video_latent": normal(1, 16, 2, 4, 4)}, in_dim=20),
    _wan("WAN22_WanDancer", "", {**_MASKED, **_CLIP, "audio_embed": normal(1, 8, 35)}, audio_inject_layers=[0],
         music_dim=32, music_heads=2, music_latent_dim=32),
    _hunyuan(),
    _hunyuan("HunyuanVideoI2V", "", {"concat_latent_image": normal(1, *_LATENT)}, in_channels=33),
    _hunyuan("HunyuanVideo", "I2V", {"guiding_frame_index": 0, "ref_latent": normal(1, 16, 1, 8, 8)}),
    _hunyuan("HunyuanVideoSkyreelsI2V", "", {"concat_latent_image": normal(1, *_LATENT)}, in_channels=32),
    Case("HunyuanVideo15", "", _HUNYUAN_15, (32, 2, 4, 4), text(48, **_CAPTION_15)),
    Case("HunyuanVideo15", "I2V", _HUNYUAN_15, (32, 2, 4, 4),
         text(48, **_CAPTION_15,
              concat_latent_image=normal(1, 32, 2, 4, 4),
              concat_mask=ones(1, 1, 2, 4, 4), clip_vision_output=seen(9, 1152))),
    Case("HunyuanVideo15_SR_Distilled", "", {**_HUNYUAN_15, "in_channels": 98}, (32, 2, 4, 4),
         text(48, **_CAPTION_15, concat_latent_image=normal(1, 66, 2, 4, 4))),
    Case("GenmoMochi", "", {
        "depth": 1, "patch_size": 2, "num_heads": 2, "hidden_size_x": 64, "hidden_size_y": 32, "mlp_ratio_x": 192.0,
        "mlp_ratio_y": 2.0, "learn_sigma": False, "in_channels": 12, "qk_norm": True, "qkv_bias": False,
        "out_bias": True, "attn_drop": 0.0, "patch_embed_bias": True, "posenc_preserve_area": True,
        "timestep_mlp_bias": True, "attend_to_padding": False, "timestep_scale": 1000.0, "use_t5": True,
        "t5_feat_dim": 48, "t5_token_length": 12, "rope_theta": 10000.0,
    }, (12, 2, 8, 8), text(48, **_CAPTION_MASK)),
    Case("LTXV", "", _LTX, (128, 2, 4, 4), text(48, **_CAPTION_MASK)),
    Case("LTXV", "I2V", _LTX, (128, 2, 4, 4), text(48, **_CAPTION_MASK), noise_mask=(1, 1, 2, 1, 1)),
    Case("LTXAV", "", {
        "cross_attention_dim": 128, "audio_cross_attention_dim": 64, "attention_head_dim": 64,
        "audio_attention_head_dim": 32, "num_attention_heads": 2, "audio_num_attention_heads": 2,
        "caption_channels": 48, "num_layers": 1, "connector_attention_head_dim": 32,
        "connector_num_attention_heads": 2, "connector_num_layers": 1,
    }, ((128, 2, 4, 4), (8, 4, 16)), text(48, **_CAPTION_MASK)),
    Case("MiniMaxH3", "", {
        "hidden_size": 64, "num_layers": 1, "token_refiner_num_layers": 1, "num_attention_heads": 2,
        "attention_head_dim": 32, "ffn_hidden_size": 64, "text_dim": 48, "timestep_input_dim": 32,
        "time_embed_hidden_size": 32, "time_embed_dim": 32, "rope_inv_freq_len": 4,
    }, ((24, 2, 4, 4), (32, 8)), text(48)),
    Case("CosmosT2V", "", _COSMOS_1, _LATENT, text(48, **_CAPTION_MASK)),
    Case("CosmosI2V", "", _COSMOS_1, _LATENT, text(48, **_CAPTION_MASK), noise_mask=(1, 1, 2, 8, 8)),
    Case("CosmosI2VPredict2", "", _COSMOS_2, _LATENT, text(48), noise_mask=(1, 1, 2, 8, 8)),
    Case("Kandinsky5", "", {
        "in_text_dim": 48, "in_text_dim2": 40, "time_dim": 32, "model_dim": 64, "ff_dim": 128, "num_text_blocks": 1,
        "num_visual_blocks": 1, "visual_embed_dim": 132,
    }, _LATENT, text(48, pooled_output=normal(1, 40))),
    Case("Kandinsky5", "I2V", {
        "in_text_dim": 48, "in_text_dim2": 40, "time_dim": 32, "model_dim": 64, "ff_dim": 128, "num_text_blocks": 1,
        "num_visual_blocks": 1, "visual_embed_dim": 132,
    }, _LATENT, text(48, pooled_output=normal(1, 40), time_dim_replace=normal(1, 16, 1, 8, 8))),
    Case("CogVideoX_T2V", "", _COG, _LATENT, text(48)),
    Case("CogVideoX_T2V", "1.5", {**_COG, "patch_size_t": 2}, _LATENT, text(48)),
    Case("CogVideoX_I2V", "", _COG, _LATENT, text(48, concat_latent_image=normal(1, *_LATENT))),
    Case("CogVideoX_I2V", "1.5", {**_COG, "patch_size_t": 2, "ofs_embed_dim": 32}, _LATENT,
         text(48, concat_latent_image=normal(1, *_LATENT))),
    Case("CogVideoX_Inpaint", "", _COG, _LATENT, text(48, concat_latent_image=normal(1, 32, 2, 8, 8))),
]  # fmt: skip
