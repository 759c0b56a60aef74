"""Small random MODELs of families that are smaller than any which the host's loaders would recognise: made of its
configuration classes, with what a node or a text encoder gives them."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from tests.support.family_models import WAN_LAYOUT, random_state_dict


@dataclass(frozen=True)
class Network:
    """config: the host's configuration class; layout: its unet_config; latent: shape of one sample, as a VAE makes it;
    encode: generator → CONDITIONING entry"""

    config: str
    layout: dict
    latent: tuple[int, ...]
    encode: Callable[[torch.Generator], list]

    def model(self, seed: int = 0):
        """A MODEL of the host in fp32."""
        return make_model(self.config, self.layout, seed)

    def latents(self, count: int, seed: int = 1) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(1, *self.latent, generator=generator) for _ in range(count)]

    def captions(self, count: int, seed: int = 2) -> list[list]:
        generator = torch.Generator().manual_seed(seed)
        return [self.encode(generator) for _ in range(count)]


def make_model(config_name: str, layout: dict, seed: int = 0):
    """A MODEL (ModelPatcher) of one of the host's configuration classes, in fp32, with random weights."""
    from comfy import model_patcher, supported_models

    config = getattr(supported_models, config_name)(dict(layout))
    config.set_inference_dtype(torch.float32, None)
    with _small_lyric_encoders():
        model = config.get_model({}, "")
        shapes = config.get_model({}, "", device="meta").diffusion_model
    weights = random_state_dict(lambda: shapes, seed)
    model.diffusion_model.load_state_dict(weights)
    return model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


@contextmanager
def _small_lyric_encoders():
    """The size of ACE-Step's is in no layout."""
    import comfy.ldm.ace.model as ace

    small = partial(ace.LyricEncoder, output_size=32, attention_heads=2, linear_units=64, num_blocks=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ace, "LyricEncoder", small)
        yield


def text(tokens: int, width: int, **options: Callable) -> Callable[[torch.Generator], list]:
    """A maker of captions of so many vectors; options: name → function of the generator that makes its value."""

    def encode(generator):
        made = {name: make(generator) for name, make in options.items()}
        return [torch.randn(1, tokens, width, generator=generator), made]

    return encode


def normal(*shape: int) -> Callable[[torch.Generator], torch.Tensor]:
    return lambda generator: torch.randn(shape, generator=generator)


def integers(*shape: int, below: int) -> Callable[[torch.Generator], torch.Tensor]:
    return lambda generator: torch.randint(below, shape, generator=generator)


def reference(*shape: int) -> Callable[[torch.Generator], list[torch.Tensor]]:
    """One picture beside the text, as the host's nodes put it into a conditioning."""
    return lambda generator: [torch.randn(shape, generator=generator)]


def seen(*shape: int) -> Callable[[torch.Generator], SimpleNamespace]:
    """What CLIP Vision sees in a picture."""
    return lambda generator: SimpleNamespace(penultimate_hidden_states=torch.randn(1, *shape, generator=generator))


NETWORKS = {
    "HiDream-O1": Network(
        "HiDreamO1",
        {"image_model": "hidream_o1",
         "text_config_overrides": {
             "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "rope_dims": [8, 4, 4]},
         "vision_config_overrides": {
             "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "depth": 1, "num_position_embeddings": 16}},
        (3, 64, 64), text(6, 64, text_input_ids=integers(1, 6, below=64)),
    ),
    "ACE-Step": Network(
        "ACEStep",
        {"audio_model": "ace", "attention_head_dim": 32, "in_channels": 8, "inner_dim": 64, "max_height": 16,
         "max_position": 64, "max_width": 64, "mlp_ratio": 2.5, "num_attention_heads": 2, "num_layers": 2,
         "out_channels": 8, "patch_size": [16, 1], "rope_theta": 1000000.0, "speaker_embedding_dim": 512,
         "text_embedding_dim": 64, "ssl_encoder_depths": [8], "ssl_latent_dims": [32], "ssl_names": ["mert"],
         "lyric_encoder_vocab_size": 32, "lyric_hidden_size": 32},
        (8, 16, 12), text(5, 64, conditioning_lyrics=integers(1, 7, below=32)),
    ),
    "HunyuanImage 2.1 distilled": Network(
        "HunyuanImage21",
        {"image_model": "hunyuan_video", "in_channels": 64, "out_channels": 64, "patch_size": [1, 1],
         "vec_in_dim": None, "axes_dim": [32, 32], "meanflow": True, "meanflow_sum": False, "context_in_dim": 64,
         "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1, "theta": 256,
         "qkv_bias": True, "byt5": False, "guidance_embed": True, "use_cond_type_embedding": False,
         "vision_in_dim": None},
        (64, 4, 4), text(5, 64),
    ),
    "Hunyuan3D 2.1": Network(
        "Hunyuan3Dv2_1",
        {"image_model": "hunyuan3d2_1", "in_channels": 64, "context_dim": 32, "hidden_size": 64, "num_heads": 2,
         "depth": 3, "num_moe_layers": 2, "num_experts": 3, "qkv_bias": False, "guidance_cond_proj_dim": None},
        (64, 24), text(5, 32),
    ),
    "SCAIL": Network(
        "WAN21_SCAIL", {"image_model": "wan2.1", **WAN_LAYOUT, "model_type": "scail", "in_dim": 20},
        (16, 2, 8, 8), text(12, 4096, reference_latents=reference(1, 16, 1, 8, 8)),
    ),
    "SCAIL 2": Network(
        "WAN21_SCAIL2", {"image_model": "wan2.1", **WAN_LAYOUT, "model_type": "scail2", "in_dim": 20},
        (16, 2, 8, 8), text(12, 4096, reference_latents=reference(1, 16, 1, 8, 8),
                            pose_video_latent=normal(1, 16, 2, 4, 4)),
    ),
    "HuMo 17B": Network(
        "WAN21_HuMo", {"image_model": "wan2.1", **WAN_LAYOUT, "model_type": "humo", "in_dim": 36},
        (16, 2, 8, 8), text(12, 4096, reference_latents=reference(1, 16, 1, 8, 8),
                            audio_embed=normal(1, 2, 8, 5, 1280)),
    ),
    "WanDancer": Network(
        "WAN22_WanDancer",
        {"image_model": "wan2.1", **WAN_LAYOUT, "model_type": "wandancer", "in_dim": 36, "audio_inject_layers": [0],
         "music_dim": 32, "music_heads": 2, "music_latent_dim": 32},
        (16, 2, 8, 8), text(12, 4096, audio_embed=normal(1, 8, 35), concat_latent_image=normal(1, 16, 2, 8, 8),
                            clip_vision_output=seen(257, 1280)),
    ),
    "HunyuanVideo from a picture": Network(
        "HunyuanVideo",
        {"image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2],
         "vec_in_dim": 32, "axes_dim": [8, 12, 12], "context_in_dim": 48, "hidden_size": 64, "mlp_ratio": 2.0,
         "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "theta": 256, "qkv_bias": True, "guidance_embed": False,
         "byt5": False, "meanflow": False, "meanflow_sum": False, "use_cond_type_embedding": False,
         "vision_in_dim": None},
        (16, 2, 8, 8), text(5, 48, pooled_output=normal(1, 32), guiding_frame_index=lambda _: 0,
                            ref_latent=normal(1, 16, 1, 8, 8)),
    ),
    "PiD": Network(
        "PiD",
        {"image_model": "pid", "num_groups": 2, "hidden_size": 64, "pixel_hidden_size": 8,
         "pixel_attn_hidden_size": 32, "pixel_num_groups": 2, "patch_depth": 2, "pixel_depth": 1, "txt_embed_dim": 32,
         "lq_hidden_dim": 16, "lq_num_res_blocks": 1},
        (3, 64, 64), text(5, 32, lq_latent=normal(1, 16, 2, 2), degrade_sigma=lambda _: torch.tensor([0.0])),
    ),
}  # fmt: skip
