"""Parameter names of SD3, Flux and Flux.2, as diffusers and ComfyUI give them.

ComfyUI keeps query, key and value in one weight (in Flux's single blocks the MLP's first layer too), diffusers each in
one of its own. Of a norm that is modulated by scale and shift alone, diffusers has the scale first, ComfyUI the shift.
"""

import re
from collections.abc import Mapping

from ..errors import DeltaError
from .parts import Part

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

_BLOCK_NUMBER = re.compile(r"(?<=_blocks\.)\d+(?=\.)")
_CONTEXT_MODULATION = ("transformer_blocks.{}.norm1_context.linear", "joint_blocks.{}.context_block.adaLN_modulation.1")


def _table(ends: Mapping, **blocks: tuple[str, Mapping]) -> dict[str, Part]:
    table = {own: _part("", place) for own, place in ends.items()}
    for own_block, (block, modules) in blocks.items():
        table |= {f"{own_block}.{{}}.{own}": _part(f"{block}.{{}}.", place) for own, place in modules.items()}
    return table


def _part(block: str, place: str | tuple) -> Part:
    name, *rest = (place,) if isinstance(place, str) else place
    return Part(block + name, *rest)


SD3 = _table(_SD3_ENDS, transformer_blocks=("joint_blocks", _SD3_BLOCK))
FLUX = _table(
    _FLUX_ENDS,
    transformer_blocks=("double_blocks", _FLUX_DOUBLE),
    single_transformer_blocks=("single_blocks", _FLUX_SINGLE),
)
FLUX2 = _table(
    _FLUX2_ENDS,
    transformer_blocks=("double_blocks", _FLUX2_DOUBLE),
    single_transformer_blocks=("single_blocks", _FLUX2_SINGLE),
)
# What files for either of them are found to say, too: each other's names, where the layer is the same.
_FLUX_ALIASES = _table(
    {},
    transformer_blocks=("double_blocks", {own: _FLUX_DOUBLE[old] for old, own in _FLUX2_RENAMED.items()}),
    single_transformer_blocks=("single_blocks", {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}),
)
_FLUX2_ALIASES = _table(
    {own: place for own, place in _FLUX_ENDS.items() if own.startswith("time_text_embed.")},
    transformer_blocks=("double_blocks", {old: _FLUX_DOUBLE[old] for old in _FLUX2_RENAMED}),
    single_transformer_blocks=(
        "single_blocks",
        {"proj_out": "linear2"} | {f"attn.to_{row}": ("linear1", first, 1, 9) for first, row in enumerate("qkv")},
    ),
)
# Whole names, where only one of the two sides has a module around the parameter.
_SD3_PARAMETERS = {"pos_embed.pos_embed": Part("pos_embed")}


class TransformerNames:
    """Translates names of an SD3, Flux or Flux.2 model; `shapes`: some or all of its parameters', in either naming."""

    def __init__(self, table: Mapping[str, Part], shapes: Mapping[str, tuple[int, ...]]):
        self._table = table
        self._parameters = _SD3_PARAMETERS if table is SD3 else {}
        self._shapes = shapes
        self._inverse: dict[str, list[str]] = {}
        for own, part in table.items():
            self._inverse.setdefault(part.name, []).append(own)

    def to_comfy(self, name: str) -> Part | None:
        """The place of a diffusers parameter, or None for a name that this model cannot have."""
        if name in self._parameters:
            return self._parameters[name]
        template, number, parameter = _split(name)
        if template not in self._table:
            return None
        return self._placed(template, number, parameter, name)

    def to_diffusers(self, name: str) -> dict[str, Part]:
        """The diffusers parameters that make up a parameter; empty for a name that this model cannot have."""
        for own, part in self._parameters.items():
            if part.name == name:
                return {own: part}
        template, number, parameter = _split(name)
        return {
            f"{own.format(number)}.{parameter}": self._placed(own, number, parameter, name)
            for own in self._inverse.get(template, ())
        }

    def _placed(self, template: str, number: str, parameter: str, name: str) -> Part:
        part = self._table[template]
        swapped = part.swapped or (template == _CONTEXT_MODULATION[0] and self._is_last_context(number, name))
        return part._replace(name=f"{part.name.format(number)}.{parameter}", swapped=swapped)

    def _is_last_context(self, number: str, name: str) -> bool:
        """Whether this is SD3's last block, which only scales and shifts the text: twice as many rows as columns."""
        if self._table is not SD3:
            return False
        for module in _CONTEXT_MODULATION:
            shape = self._shapes.get(f"{module.format(number)}.weight")
            if shape is not None and len(shape) == 2:
                return shape[0] == 2 * shape[1]
        raise DeltaError(f"Whether '{name}' is in SD3's last block cannot be told without the base model: give it.")


def transformer_table(shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Part] | None:
    """SD3, FLUX or FLUX2 if these are parameters (name → shape) of one, in either naming; None for other models.

    Raises DeltaError for diffusers names that both SD3 and Flux have.
    """
    if any(name.startswith("joint_blocks.") for name in shapes):
        return SD3
    if any(_only_in_flux2(name, shape) for name, shape in shapes.items()):
        return FLUX2
    if any(name.startswith(("double_blocks.", "single_blocks.")) for name in shapes):
        return FLUX
    if not any(_BLOCK_NUMBER.search(name) and _split(name)[0] in {**SD3, **FLUX} for name in shapes):
        return None
    is_sd3 = any(name.startswith("pos_embed.") or ".attn2." in name for name in shapes)
    is_flux = any(name.startswith(("single_transformer_blocks.", "x_embedder.")) for name in shapes)
    if is_sd3 == is_flux:
        if any(name.startswith("transformer_blocks.") and _split(name)[0] not in {**SD3, **FLUX} for name in shapes):
            return None  # Qwen-Image, LTX-Video and others have blocks with some of the same names
        raise DeltaError("These layers exist in both SD3 and Flux models. Give the base model they belong to.")
    return SD3 if is_sd3 else FLUX


def table_of_aliases(table: Mapping[str, Part] | None) -> Mapping[str, Part]:
    """Further diffusers names that adapter files have for modules of the models of a table."""
    return _FLUX_ALIASES if table is FLUX else _FLUX2_ALIASES if table is FLUX2 else {}


def _only_in_flux2(name: str, shape: tuple[int, ...]) -> bool:
    template = _split(name)[0]
    if template in FLUX2:
        return template not in FLUX
    # The MLPs are gated: twice as wide as their width says, which is three times the model's.
    widths = {"double_blocks.{}.img_mlp.0": 6, "double_blocks.{}.txt_mlp.0": 6, "single_blocks.{}.linear1": 9}
    if template in widths:
        return len(shape) == 2 and shape[0] == widths[template] * shape[1]
    return template.startswith(("double_stream_modulation_", "single_stream_modulation."))


def _split(name: str) -> tuple[str, str, str]:
    """A parameter's module with "{}" for the block's number, that number, and the parameter's own name."""
    module, _, parameter = name.rpartition(".")
    found = _BLOCK_NUMBER.search(name)
    return _BLOCK_NUMBER.sub("{}", module, count=1), found[0] if found else "", parameter
