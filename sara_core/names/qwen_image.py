"""Parameter names of Qwen-Image, which diffusers and ComfyUI have alike."""

import re
from collections.abc import Mapping

_STREAM = r"transformer_blocks\.\d+\.(img|txt)_(mod\.1|mlp\.net\.(0\.proj|2))\."
_MARK = re.compile(_STREAM)
_NAMES = re.compile(
    rf"({_STREAM}|transformer_blocks\.\d+\.attn\.((to|add)_[qkv](_proj)?|to_out\.0|to_add_out|norm_(added_)?[qk])\."
    r"|(time_text_embed\.timestep_embedder\.linear_[12]|time_text_embed\.addition_t_embedding|txt_norm|img_in|txt_in"
    r"|norm_out\.linear|proj_out)\.)\w+"
)


def is_qwen_image(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether parameters (name → shape) are those of a Qwen-Image model. Those of its attention alone do not tell:
    SD3 and Flux have layers of the same names in diffusers."""
    return any(map(_MARK.match, shapes)) and all(map(_NAMES.fullmatch, shapes))
