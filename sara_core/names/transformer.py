"""Parameter names of SD3, Flux and Flux.2, as diffusers and ComfyUI give them.

ComfyUI keeps query, key and value in one weight (in Flux's single blocks the MLP's first layer too), diffusers each in
one of its own. Of a norm that is modulated by scale and shift alone, diffusers has the scale first, ComfyUI the shift.
"""

from collections.abc import Mapping

from ..errors import DeltaError
from .table import TableNames, name_table

# diffusers module: ComfyUI's module, and which of its equal parts (first, size, whole). "{}" is a block's number.
_SD3_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "attn.to_q": ("x_block.attn.qkv", 0, 1, 3),
    "attn.to_k": ("x_block.attn.qkv", 1, 1, 3),
    "attn.to_v": ("x_block.attn.qkv", 2, 1, 3),
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn2.to_q": ("x_block.attn2.qkv", 0, 1, 3),
    "attn2.to_k": ("x_block.attn2.qkv", 1, 1, 3),
    "attn2.to_v": ("x_block.attn2.qkv", 2, 1, 3),
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.add_q_proj": ("context_block.attn.qkv", 0, 1, 3),
    "attn.add_k_proj": ("context_block.attn.qkv", 1, 1, 3),
    "attn.add_v_proj": ("context_block.attn.qkv", 2, 1, 3),
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_add_out": "context_block.attn.proj",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_SD3_ENDS = {
    "pos_embed.proj": "x_embedder.proj",
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": ("final_layer.adaLN_modulation.1", 0, 1, 1, True),
    "proj_out": "final_layer.linear",
}
_FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "attn.to_q": ("img_attn.qkv", 0, 1, 3),
    "attn.to_k": ("img_attn.qkv", 1, 1, 3),
    "attn.to_v": ("img_attn.qkv", 2, 1, 3),
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "norm1_context.linear": "txt_mod.lin",
    "attn.add_q_proj": ("txt_attn.qkv", 0, 1, 3),
    "attn.add_k_proj": ("txt_attn.qkv", 1, 1, 3),
    "attn.add_v_proj": ("txt_attn.qkv", 2, 1, 3),
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_add_out": "txt_attn.proj",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
# The MLP of a single block is four times as wide as the model, so linear1 has seven equal parts: q, k, v and four.
_FLUX_SINGLE = {
    "norm.linear": "modulation.lin",
    "attn.to_q": ("linear1", 0, 1, 7),
    "attn.to_k": ("linear1", 1, 1, 7),
    "attn.to_v": ("linear1", 2, 1, 7),
    "proj_mlp": ("linear1", 3, 4, 7),
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
    "proj_out": "linear2",
}
_FLUX_ENDS = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "norm_out.linear": ("final_layer.adaLN_modulation.1", 0, 1, 1, True),
    "proj_out": "final_layer.linear",
}
# Flux.2 has one modulation for all blocks of a kind, and keeps the single blocks' fused layers in diffusers too.
_FLUX2_RENAMED = {
    "ff.net.0.proj": "ff.linear_in",
    "ff.net.2": "ff.linear_out",
    "ff_context.net.0.proj": "ff_context.linear_in",
    "ff_context.net.2": "ff_context.linear_out",
}
_FLUX2_DOUBLE = {_FLUX2_RENAMED.get(own, own): place for own, place in _FLUX_DOUBLE.items() if "norm1" not in own}
_FLUX2_SINGLE = {
    "attn.to_qkv_mlp_proj": "linear1",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
    "attn.to_out": "linear2",
}
_FLUX2_ENDS = {
    **{own.replace("time_text_embed", "time_guidance_embed"): place
       for own, place in _FLUX_ENDS.items() if ".text_embedder." not in own},
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
}  # fmt: skip

_CONTEXT_MODULATION = ("transformer_blocks.{}.norm1_context.linear", "joint_blocks.{}.context_block.adaLN_modulation.1")

SD3 = name_table(_SD3_ENDS, transformer_blocks=("joint_blocks", _SD3_BLOCK))
FLUX = name_table(
    _FLUX_ENDS,
    transformer_blocks=("double_blocks", _FLUX_DOUBLE),
    single_transformer_blocks=("single_blocks", _FLUX_SINGLE),
)
FLUX2 = name_table(
    _FLUX2_ENDS,
    transformer_blocks=("double_blocks", _FLUX2_DOUBLE),
    single_transformer_blocks=("single_blocks", _FLUX2_SINGLE),
)
# What files for either of them are found to say, too: each other's names, where the layer is the same.
FLUX_ALIASES = name_table(
    {},
    transformer_blocks=("double_blocks", {own: _FLUX_DOUBLE[old] for old, own in _FLUX2_RENAMED.items()}),
    single_transformer_blocks=("single_blocks", {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}),
)
FLUX2_ALIASES = name_table(
    {own: place for own, place in _FLUX_ENDS.items() if own.startswith("time_text_embed.")},
    transformer_blocks=("double_blocks", {old: _FLUX_DOUBLE[old] for old in _FLUX2_RENAMED}),
    single_transformer_blocks=(
        "single_blocks",
        {"proj_out": "linear2"} | {f"attn.to_{row}": ("linear1", first, 1, 9) for first, row in enumerate("qkv")},
    ),
)
# Whole names, where only one of the two sides has a module around the parameter.
SD3_PARAMETERS = {"pos_embed.pos_embed": "pos_embed"}


class SD3Names(TableNames):
    """Translates names of an SD3 model."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        super().__init__(SD3, shapes, SD3_PARAMETERS)

    def _is_swapped(self, template: str, number: str, name: str) -> bool:
        """Whether this is in the last block, which only scales and shifts the text: twice as many rows as columns."""
        if template != _CONTEXT_MODULATION[0]:
            return False
        for module in _CONTEXT_MODULATION:
            shape = self._shapes.get(f"{module.format(number)}.weight")
            if shape is not None and len(shape) == 2:
                return shape[0] == 2 * shape[1]
        raise DeltaError(f"Whether '{name}' is in SD3's last block cannot be told without the base model: give it.")
