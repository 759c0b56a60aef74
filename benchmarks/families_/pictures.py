"""Cases of transformers that make pictures."""

import torch

from .case import Case, integers, normal, ones, seen, several, text

_LATENT, _WIDE, _PIXELS = (16, 8, 8), (128, 4, 4), (3, 32, 32)
_REFERENCE = {"reference_latents": several(normal(1, *_LATENT))}
_REFERENCE_VIDEO = {"reference_latents": several(normal(1, 16, 1, 8, 8))}

_FLUX = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 40, "context_in_dim": 48, "hidden_size": 128,
    "mlp_ratio": 2.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10000,
    "patch_size": 2, "qkv_bias": True, "txt_ids_dims": [],
}  # fmt: skip
_FLUX_CAPTION = {"pooled_output": normal(1, 40), "guidance": 3.5}


def _flux(config="Flux", variant="", options=None, **layout) -> Case:
    return Case(config, variant, {**_FLUX, **layout}, _LATENT, text(48, **_FLUX_CAPTION, **(options or {})))


_CONCAT = {"concat_latent_image": normal(1, *_LATENT)}
_FLUX2 = {
    **_FLUX, "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "axes_dim": [32, 32, 32, 32],
    "mlp_ratio": 3.0, "theta": 2000, "patch_size": 1, "global_modulation": True, "mlp_silu_act": True,
    "qkv_bias": False, "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3],
}  # fmt: skip
_CHROMA = {
    **_FLUX, "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 128, "hidden_dim": 64, "n_layers": 1,
    "vec_in_dim": None,
}  # fmt: skip
_RADIANCE = {
    **_CHROMA, "in_channels": 3, "out_channels": 3, "patch_size": 16, "nerf_hidden_size": 16, "nerf_mlp_ratio": 2,
    "nerf_depth": 1, "nerf_max_freqs": 4, "nerf_tile_size": 512, "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": torch.float32, "use_x0": False, "use_sequential_txt_ids": False,
}  # fmt: skip
_LUMINA = {
    "patch_size": 2, "in_channels": 16, "dim": 96, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2,
    "n_kv_heads": 2, "multiple_of": 32, "axes_dims": [16, 16, 16], "axes_lens": [300, 512, 512], "cap_feat_dim": 48,
    "qk_norm": True, "ffn_dim_multiplier": 2.0,
}  # fmt: skip
_Z_IMAGE = {
    **_LUMINA, "dim": 256, "axes_dims": [32, 48, 48], "z_image_modulation": True, "time_scale": 1000.0,
    "rope_theta": 256.0, "pad_tokens_multiple": 32,
}  # fmt: skip
_Z_PIXELS = {
    **_Z_IMAGE, "patch_size": 16, "in_channels": 3, "decoder_in_channels": 768, "decoder_hidden_size": 32,
    "decoder_num_res_blocks": 1, "decoder_max_freqs": 4,
}  # fmt: skip
_CAPTION_MASK = {"attention_mask": ones(1, 12, dtype=torch.long)}
_QWEN = {"in_channels": 64, "num_layers": 2, "attention_head_dim": 128, "num_attention_heads": 1,
         "joint_attention_dim": 48}  # fmt: skip
_PIXELDIT = {
    "num_groups": 2, "hidden_size": 64, "pixel_hidden_size": 8, "pixel_attn_hidden_size": 32, "pixel_num_groups": 2,
    "patch_depth": 2, "pixel_depth": 1, "txt_embed_dim": 48,
}  # fmt: skip
_OMNIGEN = {
    "hidden_size": 96, "num_layers": 1, "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1,
    "multiple_of": 32, "axes_dim_rope": [16, 16, 16], "axes_lens": [300, 512, 512], "norm_eps": 1e-5,
    "timestep_scale": 1000.0,
}  # fmt: skip
_HUNYUAN_IMAGE = {
    "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "axes_dim": [64, 64], "meanflow": False,
    "meanflow_sum": False, "context_in_dim": 48, "hidden_size": 128, "mlp_ratio": 2.0, "num_heads": 1, "depth": 1,
    "depth_single_blocks": 1, "theta": 256, "qkv_bias": True, "byt5": False, "guidance_embed": False,
    "use_cond_type_embedding": False, "vision_in_dim": None,
}  # fmt: skip
_HIDREAM_O1 = {
    "text_config_overrides": {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "rope_dims": [8, 4, 4],
    },
    "vision_config_overrides": {
        "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "depth": 1, "num_position_embeddings": 16,
    },
}  # fmt: skip
_SD3 = {
    "depth": 2, "out_channels": 16, "adm_in_channels": 64, "num_patches": 64, "pos_embed_max_size": 8,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 128}},
}  # fmt: skip
_HYDIT = {"hidden_size": 64, "depth": 4, "num_heads": 2, "mlp_ratio": 2.0, "text_states_dim": 48,
          "text_states_dim_t5": 40}  # fmt: skip
_HYDIT_CAPTION = text(
    48,
    77,
    attention_mask=ones(1, 77, dtype=torch.long),
    conditioning_mt5xl=normal(1, 256, 40),
    attention_mask_mt5xl=ones(1, 256, dtype=torch.long),
)
# Its sizes are embedded in a third of the width each.
_PIXART = {"hidden_size": 96, "depth": 2, "num_heads": 2, "input_size": 16, "pe_interpolation": 1,
           "caption_channels": 48}  # fmt: skip
_PIXART_CAPTION = text(48, width=128, height=128)
_KANDINSKY = {
    "in_visual_dim": 16, "out_visual_dim": 16, "in_text_dim": 48, "in_text_dim2": 40, "time_dim": 32, "model_dim": 64,
    "ff_dim": 128, "num_text_blocks": 1, "num_visual_blocks": 1, "axes_dims": (16, 24, 24),
}  # fmt: skip

CASES = [
    Case("SD3", "", _SD3, _LATENT, text(48, pooled_output=normal(1, 64))),
    Case("SD3", "3.5 medium", {**_SD3, "qk_norm": "rms", "x_block_self_attn_layers": [0]}, _LATENT,
         text(48, pooled_output=normal(1, 64))),
    Case("AuraFlow", "", {"dim": 64, "n_layers": 2, "n_double_layers": 1, "n_heads": 2, "global_conddim": 64,
                          "cond_seq_dim": 48, "max_seq": 64}, (4, 8, 8), text(48)),
    Case("PixArtAlpha", "", {**_PIXART, "micro_condition": True}, (4, 64, 64), _PIXART_CAPTION),
    Case("PixArtSigma", "", {**_PIXART, "micro_condition": False}, (4, 64, 64), _PIXART_CAPTION),
    Case("HunyuanDiT", "", _HYDIT, (4, 8, 8), _HYDIT_CAPTION),
    Case("HunyuanDiT1", "", {**_HYDIT, "size_cond": True, "use_style_cond": True}, (4, 8, 8), _HYDIT_CAPTION),
    _flux(),
    _flux(variant="Kontext", options=_REFERENCE),
    _flux(variant="Canny", options=_CONCAT, in_channels=32),
    _flux("FluxInpaint", "", _CONCAT, in_channels=96),
    _flux("FluxSchnell"),
    _flux("FluxSchnell", "Ovis", vec_in_dim=None, yak_mlp=True, txt_norm=True, txt_ids_dims=[1, 2]),
    Case("LongCatImage", "", {**_FLUX, "vec_in_dim": None, "txt_ids_dims": [1, 2], "context_in_dim": 48}, _LATENT,
         text(48)),
    Case("LongCatImage", "Edit", {**_FLUX, "vec_in_dim": None, "txt_ids_dims": [1, 2], "context_in_dim": 48}, _LATENT,
         text(48, **_REFERENCE)),
    Case("Flux2", "", {**_FLUX2, "guidance_embed": True}, _WIDE, text(48)),
    Case("Flux2", "Klein", {**_FLUX2, "guidance_embed": False}, _WIDE, text(48)),
    Case("Flux2", "with a reference", {**_FLUX2, "guidance_embed": True}, _WIDE,
         text(48, reference_latents=several(normal(1, *_WIDE)))),
    Case("Chroma", "", _CHROMA, _LATENT, text(48)),
    Case("ChromaRadiance", "", _RADIANCE, _PIXELS, text(48)),
    Case("ChromaRadiance", "x0", {**_RADIANCE, "use_x0": True}, _PIXELS, text(48)),
    Case("Lens", "", {"num_layers": 1, "num_attention_heads": 1, "enc_hidden_dim": 24, "selected_layer_index": (0, 1)},
         _WIDE, text(48, **_CAPTION_MASK)),
    Case("Lumina2", "", _LUMINA, _LATENT, text(48, **_CAPTION_MASK)),
    Case("Lumina2", "NewBie", {**_LUMINA, "clip_text_dim": 40}, _LATENT,
         text(48, pooled_output=normal(1, 40), **_CAPTION_MASK)),
    Case("ZImage", "", _Z_IMAGE, _LATENT, text(48)),
    Case("ZImage", "omni", {**_Z_IMAGE, "siglip_feat_dim": 24}, _LATENT,
         text(48, **_REFERENCE, clip_vision_outputs=several(seen(4, 24)))),
    Case("ZImagePixelSpace", "", _Z_PIXELS, _PIXELS, text(48)),
    Case("ZImagePixelSpace", "x0", {**_Z_PIXELS, "use_x0": True}, _PIXELS, text(48)),
    Case("PixelDiTT2I", "", _PIXELDIT, _PIXELS, text(48)),
    Case("PiD", "", {**_PIXELDIT, "lq_hidden_dim": 16, "lq_num_res_blocks": 1}, (3, 64, 64),
         text(48, lq_latent=normal(1, 16, 2, 2), degrade_sigma=ones(1))),
    Case("PiD", "without a picture", {**_PIXELDIT, "lq_hidden_dim": 16, "lq_num_res_blocks": 1}, (3, 64, 64),
         text(48)),
    Case("HiDream", "", {
        "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 1, "num_single_layers": 1,
        "attention_head_dim": 32, "num_attention_heads": 2, "caption_channels": [48, 48], "text_emb_dim": 40,
        "num_routed_experts": 2, "num_activated_experts": 1, "axes_dims_rope": [16, 8, 8],
        "max_resolution": [128, 128], "llama_layers": [0, 1],
    }, _LATENT, text(48, pooled_output=normal(1, 40), conditioning_llama3=normal(1, 2, 12, 48))),
    Case("HiDreamO1", "", _HIDREAM_O1, (3, 64, 64), text(64, 6, text_input_ids=integers(1, 6, below=64))),
    Case("Omnigen2", "", {**_OMNIGEN, "text_feat_dim": 48}, _LATENT, text(48, **_CAPTION_MASK)),
    Case("Omnigen2", "edit", {**_OMNIGEN, "text_feat_dim": 48}, _LATENT, text(48, **_CAPTION_MASK, **_REFERENCE)),
    Case("Boogu", "", {**_OMNIGEN, "num_double_stream_layers": 1, "instruction_feat_dim": 48}, _LATENT,
         text(48, **_CAPTION_MASK)),
    Case("Boogu", "edit", {**_OMNIGEN, "num_double_stream_layers": 1, "instruction_feat_dim": 48}, _LATENT,
         text(48, **_CAPTION_MASK, **_REFERENCE)),
    Case("MageFlow", "", {"num_layers": 1, "num_attention_heads": 1, "joint_attention_dim": 48}, _WIDE, text(48)),
    Case("QwenImage", "", _QWEN, (16, 1, 8, 8), text(48, **_CAPTION_MASK)),
    Case("QwenImage", "Edit", _QWEN, (16, 1, 8, 8), text(48, **_CAPTION_MASK, **_REFERENCE_VIDEO)),
    Case("QwenImage", "2511", {**_QWEN, "default_ref_method": "index_timestep_zero"}, (16, 1, 8, 8),
         text(48, **_CAPTION_MASK, **_REFERENCE_VIDEO)),
    Case("QwenImage", "Layered", {**_QWEN, "use_additional_t_cond": True, "default_ref_method": "negative_index"},
         (16, 3, 8, 8), text(48, **_CAPTION_MASK, **_REFERENCE_VIDEO)),
    Case("JoyImage", "", {"hidden_size": 128, "num_attention_heads": 1, "text_dim": 48, "num_layers": 1},
         (16, 1, 8, 8), text(48)),
    Case("JoyImage", "edit", {"hidden_size": 128, "num_attention_heads": 1, "text_dim": 48, "num_layers": 1},
         (16, 1, 8, 8), text(48, **_REFERENCE_VIDEO)),
    Case("Ideogram4", "", {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 128,
                           "intermediate_size": 128, "adaln_dim": 32, "llm_features_dim": 48}, _WIDE, text(48)),
    Case("Krea2", "", {"features": 128, "tdim": 32, "txtdim": 32, "heads": 1, "kvheads": 1, "layers": 1,
                       "txtlayers": 2, "txtheads": 1, "txtkvheads": 1}, _LATENT, text(64)),
    Case("Kandinsky5Image", "", {**_KANDINSKY, "visual_embed_dim": 64, "rope_scale_factor": (1.0, 1.0, 1.0)},
         _LATENT, text(48, pooled_output=normal(1, 40))),
    Case("HunyuanImage21", "", _HUNYUAN_IMAGE, (64, 4, 4), text(48)),
    Case("HunyuanImage21", "distilled", {**_HUNYUAN_IMAGE, "meanflow": True, "guidance_embed": True}, (64, 4, 4),
         text(48)),
    Case("HunyuanImage21Refiner", "", {**_HUNYUAN_IMAGE, "in_channels": 128, "patch_size": [1, 1, 1],
                                       "axes_dim": [16, 56, 56]}, (32, 1, 4, 4),
         text(48, concat_latent_image=normal(1, 32, 1, 4, 4))),
    Case("ErnieImage", "", {"hidden_size": 128, "num_attention_heads": 1, "num_layers": 1, "ffn_hidden_size": 128,
                            "text_in_dim": 48}, _WIDE, text(48)),
    Case("CosmosT2IPredict2", "", {
        "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "out_channels": 16, "patch_spatial": 2,
        "patch_temporal": 1, "model_channels": 256, "num_blocks": 1, "num_heads": 2, "crossattn_emb_channels": 48,
        "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "use_adaln_lora": True, "adaln_lora_dim": 32,
        "rope_enable_fps_modulation": False,
    }, (16, 1, 8, 8), text(48)),
    Case("Anima", "", {
        "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
        "patch_spatial": 2, "patch_temporal": 1, "model_channels": 256, "num_blocks": 1, "num_heads": 2,
        "crossattn_emb_channels": 64, "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "use_adaln_lora": True,
        "adaln_lora_dim": 32, "rope_enable_fps_modulation": False,
    }, (16, 1, 8, 8), text(48, t5xxl_ids=integers(12, below=1000), t5xxl_weights=ones(12)),
         changed={("comfy.ldm.anima.model", "LLMAdapter"):
                  {"source_dim": 48, "target_dim": 64, "model_dim": 64, "num_layers": 1, "num_heads": 2}}),
]  # fmt: skip
