"""Small random MODELs that are given their picture by the noise mask of the latents, and the nodes that make it."""

import torch

from tests.support.family_models import WAN_LAYOUT
from tests.support.unrecognised_models import Network, text

_COSMOS_LAYOUT = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 17, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 256, "num_blocks": 2, "num_heads": 2, "crossattn_emb_channels": 1024,
    "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "use_adaln_lora": True, "adaln_lora_dim": 64,
}  # fmt: skip

IMAGE_TO_VIDEO = {
    "Wan 2.2 5B": Network(
        "WAN22_T2V",
        {"image_model": "wan2.1", **WAN_LAYOUT, "in_dim": 48, "out_dim": 48},
        (48, 3, 4, 4), text(8, 4096),
    ),
    "LTX-V": Network(
        "LTXV",
        {"image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 128, "attention_head_dim": 64,
         "num_attention_heads": 2, "caption_channels": 256, "num_layers": 2},
        (128, 3, 2, 2), text(8, 256, attention_mask=lambda _: torch.ones(1, 8, dtype=torch.long)),
    ),
    "Cosmos": Network(
        "CosmosI2V",
        {"image_model": "cosmos", **_COSMOS_LAYOUT, "concat_padding_mask": True, "block_config": "FA-CA-MLP",
         "pos_emb_learnable": False, "pos_emb_interpolation": "crop", "block_x_format": "THWBD",
         "affline_emb_norm": True, "extra_per_block_abs_pos_emb": True,
         "extra_per_block_abs_pos_emb_type": "learnable"},
        (16, 3, 4, 4), text(8, 1024),
    ),
    "Cosmos Predict2": Network(
        "CosmosI2VPredict2",
        {"image_model": "cosmos_predict2", **_COSMOS_LAYOUT, "rope_enable_fps_modulation": False},
        (16, 3, 4, 4), text(8, 1024),
    ),
}  # fmt: skip


class FirstFrameVAE:
    """Encodes every picture as one frame of threes, of a Network's channels."""

    def __init__(self, channels: int, scale: int):
        self.channels, self.downscale_index_formula = channels, (None, scale, scale)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        _, scale, _ = self.downscale_index_formula
        return torch.full((1, self.channels, 1, pixels.shape[1] // scale, pixels.shape[2] // scale), 3.0)


def node_for_sampling(comfy, name: str) -> dict:
    """The LATENT with a mask that the node of a family makes of a picture, for its sampler to fill in the rest."""
    channels, frames, height, width = IMAGE_TO_VIDEO[name].latent
    node, scale, stride, picture = {
        "Wan 2.2 5B": ("Wan22ImageToVideoLatent", 16, 4, "start_image"),
        "LTX-V": ("LTXVImgToVideo", 32, 8, "image"),
        "Cosmos": ("CosmosImageToVideoLatent", 8, 8, "start_image"),
        "Cosmos Predict2": ("CosmosPredict2ImageToVideoLatent", 8, 4, "start_image"),
    }[name]
    inputs = {
        "vae": FirstFrameVAE(channels, scale), "width": width * scale, "height": height * scale,
        "length": (frames - 1) * stride + 1, "batch_size": 1, picture: torch.zeros(1, height * scale, width * scale, 3),
    }  # fmt: skip
    if node == "LTXVImgToVideo":
        inputs.update(positive=[], negative=[], strength=1.0)
    return comfy.execute(node, **inputs).outputs[-1]


def video_with_its_mask(comfy, name: str, video: torch.Tensor) -> dict:
    """A whole video's latents with that node's mask, by Latent Blend."""
    blended = comfy.execute(
        "LatentBlend", samples1=node_for_sampling(comfy, name), samples2={"samples": video}, blend_factor=0.0
    )
    return blended.outputs[0]
