"""Cases of what makes sound or solids, and of what makes neither and is listed among the host's models all the same."""

from .case import Case, integers, normal, several, text

_AUDIO = {
    "embed_dim": 64, "depth": 1, "num_heads": 2, "cond_token_dim": 768, "project_cond_tokens": True,
    "input_concat_dim": 0,
}  # fmt: skip
_ACE = {
    "attention_head_dim": 32, "inner_dim": 64, "max_position": 64, "max_width": 64, "mlp_ratio": 2.5,
    "num_attention_heads": 2, "num_layers": 2, "patch_size": [16, 1], "rope_theta": 1000000.0,
    "text_embedding_dim": 48, "ssl_encoder_depths": [8], "ssl_latent_dims": [32], "ssl_names": ["mert"],
    "lyric_encoder_vocab_size": 32, "lyric_hidden_size": 32,
}  # fmt: skip
_SOLID = {"hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth_single_blocks": 1, "context_in_dim": 48}
_START = "conditioner.conditioners.seconds_start.embedder.embedding."
_TOTAL = "conditioner.conditioners.seconds_total.embedder.embedding."


def _number_embedder(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}0.weights": (128,), f"{name}1.weight": (768, 257), f"{name}1.bias": (768,)}


CASES = [
    Case("StableAudio", "", {**_AUDIO, "global_cond_dim": 1536}, (64, 32), text(768),
         {**_number_embedder(_START), **_number_embedder(_TOTAL)}),
    Case("StableAudio3", "", {**_AUDIO, "io_channels": 256, "global_cond_dim": 768, "global_cond_type": "adaLN",
                              "timestep_features_type": "learned", "local_add_cond_dim": 257},
         (256, 32), text(768), _number_embedder(_TOTAL)),
    Case("ACEStep", "", _ACE, (8, 16, 12), text(48, conditioning_lyrics=integers(1, 7, below=32)),
         changed={("comfy.ldm.ace.model", "LyricEncoder"):
                  {"output_size": 32, "attention_heads": 2, "linear_units": 64, "num_blocks": 1}}),
    Case("ACEStep15", "", {
        "hidden_size": 64, "text_hidden_dim": 48, "num_dit_layers": 2, "num_lyric_layers": 1, "num_timbre_layers": 1,
        "num_tokenizer_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 32, "intermediate_size": 64,
        "fsq_dim": 64, "encoder_hidden_size": 64, "encoder_intermediate_size": 64, "encoder_num_heads": 2,
    }, (64, 20), text(48, conditioning_lyrics=normal(1, 7, 48))),
    Case("Hunyuan3Dv2", "", {**_SOLID, "depth": 1}, (64, 24), text(48)),
    Case("Hunyuan3Dv2mini", "", {**_SOLID, "depth": 1}, (64, 24), text(48)),
    Case("Hunyuan3Dv2_1", "", {
        "context_dim": 48, "hidden_size": 64, "num_heads": 2, "depth": 3, "num_moe_layers": 2, "num_experts": 3,
        "qkv_bias": False, "guidance_cond_proj_dim": None,
    }, (64, 24), text(48)),
    Case("TripoSplat", "", {"q_token_length": 16, "model_channels": 128, "cond_channels": 48, "num_blocks": 1,
                            "num_refiner_blocks": 1}, ((16, 16), (1, 5)),
         text(48, reference_latents=several(normal(1, 128, 4, 4)))),
    Case("SeedVR2", "", {"norm_eps": 1e-5, "num_layers": 2, "mlp_type": "swiglu", "vid_dim": 64, "heads": 1,
                         "head_dim": 64, "mm_layers": 1, "txt_in_dim": 48, "rope_dim": 64, "rope_type": "rope3d"},
         (16, 1, 8, 8), text(48, condition=normal(1, 17, 1, 8, 8))),
    Case("RT_DETR_v4", "", {"enc_h": 64, "dec_h": 64, "enc_ff": 64, "dec_ff": 64, "num_queries": 10}, (3, 64, 64),
         text(48)),
    Case("DepthAnything3", "", {"backbone_name": "vits", "out_layers": [2, 5, 8, 11], "head_dim_in": 384,
                                "head_features": 16, "head_out_channels": [16, 16, 16, 16]}, (3, 28, 28), text(48)),
]  # fmt: skip
