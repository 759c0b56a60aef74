"""Cases in Stable Diffusion's layout, and Stable Cascade."""

from .case import Case, normal, text

_LATENT = (4, 8, 8)
# Two levels, of the smallest width that the group norms allow.
_SMALL = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1, "num_heads": 2, "use_spatial_transformer": True, "legacy": False,
}  # fmt: skip
# For the classes whose heads have 64 channels each, whatever the width.
_BY_HEAD = {**_SMALL, "model_channels": 64, "channel_mult": [1, 1], "num_heads": -1, "num_head_channels": 64}
_SIZES = {"width": 1024, "height": 768, "crop_w": 8, "crop_h": 0, "target_width": 1024, "target_height": 768}
_PICTURE = {"concat_latent_image": normal(1, *_LATENT)}

_sd15, _sd2 = text(48), text(48, pooled_output=normal(1, 64))


def _unet(config, variant="", caption=None, latent=_LATENT, base=_BY_HEAD, beside=None, **layout) -> Case:
    return Case(config, variant, {**base, "context_dim": 48, **layout}, latent, caption or _sd2, beside or {})


def _sdxl(config="SDXL", variant="", options=None, depth=(1, 2), **layout) -> Case:
    caption = text(48, pooled_output=normal(1, 1280), **_SIZES, **(options or {}))
    layout = {"num_classes": "sequential", "adm_in_channels": 2816, "transformer_depth": list(depth), **layout}
    return _unet(config, variant, caption, **layout)


_VIDEO = {
    "in_channels": 8, "use_temporal_resblock": True, "use_temporal_attention": True, "num_classes": "sequential",
    "extra_ff_mix_layer": True, "merge_strategy": "learned_with_images",
    "video_kernel_size": [3, 1, 1],
}  # fmt: skip

CASES = [
    _unet("SD15", caption=_sd15, base=_SMALL),
    _unet("SD15", "inpainting", _sd15, base=_SMALL, in_channels=9),
    _unet("SD15_instructpix2pix", "", text(48, **_PICTURE), base=_SMALL, in_channels=8),
    _unet("Stable_Zero123", "", text(768, **_PICTURE), base=_SMALL, context_dim=768,
          beside={"cc_projection.weight": (768, 772), "cc_projection.bias": (768,)}, in_channels=8),
    _unet("LotusD", num_classes="sequential", adm_in_channels=4),
    _unet("SD20"),
    _unet("SD20", "inpainting", in_channels=9),
    _unet("SD20", "v-prediction", beside={"output_blocks.11.1.transformer_blocks.0.norm1.bias": (4096,)}),
    _unet("SD21UnclipL", num_classes="sequential", adm_in_channels=1536),
    _unet("SD21UnclipH", num_classes="sequential", adm_in_channels=2048),
    _unet("SD_X4Upscaler", "", text(48, concat_image=normal(1, 3, 8, 8)), in_channels=7, num_res_blocks=[1] * 4,
          channel_mult=[1] * 4, transformer_depth=[0, 0, 0, 1], transformer_depth_output=[0] * 6 + [1, 1], base=_SMALL),
    _sdxl(),
    _sdxl(variant="inpainting", in_channels=9),
    _sdxl("SDXL_instructpix2pix", options=_PICTURE, in_channels=8),
    _sdxl("SDXLRefiner", adm_in_channels=2560),
    _sdxl("SSD1B"), _sdxl("Segmind_Vega", depth=(1, 1)), _sdxl("KOALA_700M", depth=(0, 1)), _sdxl("KOALA_1B"),
    *[
        _unet(config, "", text(48, **_PICTURE), adm_in_channels=width, **_VIDEO)
        for config, width in (("SVD_img2vid", 768), ("SV3D_u", 256), ("SV3D_p", 1280))
    ],
    Case(
        "Stable_Cascade_C", "",
        {"c_cond": 64, "c_hidden": [64, 64], "nhead": [2, 2], "blocks": [[1, 1], [1, 1]], "c_clip_text": 48,
         "c_clip_text_pooled": 40, "stable_cascade_stage": "c"},
        (16, 8, 8), text(48, pooled_output=normal(1, 1, 40)),
    ),
    Case(
        "Stable_Cascade_B", "",
        {"c_cond": 64, "c_hidden": [32, 32, 64, 64], "nhead": [-1, -1, 2, 2], "blocks": [[1] * 4, [1] * 4],
         "block_repeat": [[1] * 4, [1] * 4], "c_clip": 40, "stable_cascade_stage": "b"},
        (4, 16, 16), text(48, pooled_output=normal(1, 1, 40)),
    ),
]  # fmt: skip
