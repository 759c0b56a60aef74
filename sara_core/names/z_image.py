"""Parameter names of Z-Image, as diffusers and ComfyUI give them.

ComfyUI keeps query, key and value in one weight. Lumina 2 has most of these names in ComfyUI too, but fewer keys and
values than queries, and another modulation."""

import re
from collections.abc import Mapping

from .parts import Part
from .table import TableNames, name_table

_SAME = (
    "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "attention_norm1", "attention_norm2", "ffn_norm1",
    "ffn_norm2", "adaLN_modulation.0",
)  # fmt: skip
_BLOCK = {
    **{f"attention.to_{row}": ("attention.qkv", first, 1, 3) for first, row in enumerate("qkv")},
    "attention.to_out.0": "attention.out",
    "attention.norm_q": "attention.q_norm",
    "attention.norm_k": "attention.k_norm",
    **{module: module for module in _SAME},
}
_ENDS = {
    **{module: module for module in ("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.0", "cap_embedder.1")},
    "all_x_embedder.2-1": "x_embedder",
    "all_final_layer.2-1.linear": "final_layer.linear",
    "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
    # In the original files, though nothing reads it.
    "norm_final": "norm_final",
}
_BLOCKS = ("layers", "noise_refiner", "context_refiner")
_TABLE = name_table(_ENDS, **{block: (block, _BLOCK) for block in _BLOCKS})
_PARAMETERS = {name: name for name in ("x_pad_token", "cap_pad_token")}

_QKV = re.compile(rf"({'|'.join(_BLOCKS)})\.\d+\.attention\.qkv\.weight")
_MARK = re.compile(
    rf"({'|'.join(_BLOCKS)})\.\d+\.(attention\.to_|adaLN_modulation\.0\.)|all_(x_embedder|final_layer)\."
)
_FEED_FORWARD = re.compile(rf"({'|'.join(_BLOCKS)})\.\d+\.feed_forward\.w[123]\.weight")
# Its own width, for deltas of layers whose names alone Lumina 2 has too; that is 2304 wide.
_WIDTH = 3840


class ZImageNames(TableNames):
    """Translates names of a Z-Image model; `shapes`: some or all of its parameters', in either naming."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        super().__init__(_TABLE, shapes, _PARAMETERS)

    def to_diffusers(self, name: str) -> dict[str, Part]:
        """As everywhere; nothing for a weight that is not query, key and value in equal parts (Lumina 2)."""
        is_other = _QKV.fullmatch(name) and not _is_in_thirds(self._shapes.get(name, ()))
        return {} if is_other else super().to_diffusers(name)


def is_z_image(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether parameters (name → shape), in either naming, are those of a Z-Image model whose names are all known."""
    return any(_is_mark(name, shape) for name, shape in shapes.items()) and ZImageNames(shapes).knows_all()


def _is_mark(name: str, shape: tuple[int, ...]) -> bool:
    if _QKV.fullmatch(name):
        return _is_in_thirds(shape)
    return bool(_MARK.match(name) or (_FEED_FORWARD.fullmatch(name) and _WIDTH in shape))


def _is_in_thirds(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[0] == 3 * shape[1]
