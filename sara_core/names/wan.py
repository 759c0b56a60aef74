"""Parameter names of Wan 2.1 and 2.2, as diffusers and ComfyUI give them, also of those that begin from a picture
(I2V) and of VACE. Those of other variants (Animate, Camera, S2V …) are not all known, and such a model is of no known
family."""

import re
from collections.abc import Mapping

from .table import TableNames, name_table

_BLOCK = {
    **{
        f"{theirs}.{layer}": f"{own}.{place}"
        for theirs, own in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for layer, place in (
            ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"), ("norm_q", "norm_q"), ("norm_k", "norm_k"),
        )
    },
    "attn2.add_k_proj": "cross_attn.k_img",
    "attn2.add_v_proj": "cross_attn.v_img",
    "attn2.norm_added_k": "cross_attn.norm_k_img",
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}  # fmt: skip
_ENDS = {
    "patch_embedding": "patch_embedding",
    "vace_patch_embedding": "vace_patch_embedding",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "proj_out": "head.head",
}
_TABLE = name_table(
    _ENDS,
    blocks=("blocks", _BLOCK),
    vace_blocks=("vace_blocks", {**_BLOCK, "proj_in": "before_proj", "proj_out": "after_proj"}),
)
_PARAMETERS = {
    "blocks.{}.scale_shift_table": "blocks.{}.modulation",
    "vace_blocks.{}.scale_shift_table": "vace_blocks.{}.modulation",
    "scale_shift_table": "head.modulation",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
}
# What only Wan has; to_q and its like are Hunyuan3D's too.
_MARK = re.compile(
    r"(vace_)?blocks\.\d+\.((self|cross)_attn\.[qkvo]\.|ffn\.|attn[12]\.to_out\.0\.|scale_shift_table|modulation)"
    r"|condition_embedder\.|time_projection\.1\.|text_embedding\.|head\.head\."
)
# Of 2.2, the model for pictures and text at once (5B), which has a width of its own. Its other models, with an expert
# each for much and little noise (A14B), have the layers of 2.1, and what fits one fits the other.
_WIDTH_5B = 3072


class WanNames(TableNames):
    """Translates names of a Wan model; `shapes`: some or all of its parameters', in either naming."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        super().__init__(_TABLE, shapes, _PARAMETERS)


def is_wan(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether parameters (name → shape), in either naming, are those of a Wan model all of whose names are known."""
    return any(map(_MARK.match, shapes)) and WanNames(shapes).knows_all()


def is_wan_5b(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether they are those of Wan 2.2's model of 5B, as far as the shapes tell."""
    return is_wan(shapes) and any(_WIDTH_5B in shape for shape in shapes.values())
