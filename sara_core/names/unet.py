"""Parameter names of UNets: SD 1.x, SD 2.x, SDXL and other sizes of the same layout, as diffusers and LDM give them.

LDM (which ComfyUI and checkpoint files follow) numbers all blocks of the way down, and all of the way up, in one row;
diffusers numbers levels, and the blocks in each level. So a name can be translated only when it is known how many
residual blocks each level has: this is read from the names of the whole model. A few names alone are taken for those
of a model with two in each, as SD 1.x, SD 2.x and SDXL have, and nothing is translated if they contradict it.
"""

import re
from collections.abc import Collection, Mapping

from .parts import Part

# diffusers → LDM, inside a residual block
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_LABELS = {"linear_1": "label_emb.0.0", "linear_2": "label_emb.0.2"}
_BLOCKS = tuple(f"{way}_block" for way in ("input", "middle", "output", "down", "mid", "up"))
_LDM_MUST_HAVE = ("input_blocks.0.0", "time_embed.0", "time_embed.2", "out.0", "out.2")
# Of image prompts, of motion modules and of boxes (GLIGEN).
_ADDED = re.compile(r"\.(processor|motion_modules|fuser)\.")
_USUAL_LEVELS, _USUAL_BLOCKS = 4, 2
_UNCLIP_CONTEXT = 1024

# What is put into a model (`_ADDED`) may have any names in it; what something else has in a layer is not the layer's.
_IN_ATTENTION = (
    r"(?:norm|proj_in|proj_out|transformer_blocks\.\d+\."
    r"(?:norm[123]|attn[12]\.to_(?:q|k|v|out\.0)|ff\.net\.(?:0\.proj|2)|fuser(?:\..+)?|attn[12]\.processor\..+))"
)
_ATTENTION = re.compile(_IN_ATTENTION)
# Any parameter in a block, of either naming.
_IN_A_BLOCK = re.compile(
    rf"((down|up)_blocks\.\d+|mid_block)\.(resnets\.\d+\.({'|'.join(_RESIDUAL)})|attentions\.\d+\.({_IN_ATTENTION})"
    r"|(down|up)samplers\.0\.conv)\.\w+"
    rf"|((input|output)_blocks\.\d+|middle_block)\.\d(\.({'|'.join(_RESIDUAL.values())}|{_IN_ATTENTION}|op|conv))?\.\w+"
)
# Up to there blocks are counted: a name that a file makes up must not mean millions of them.
_NUMBER = "([0-9]{1,3})"
_LDM_BLOCK = re.compile(rf"input_blocks\.{_NUMBER}\.\d+\.(?P<down>op\.)?")
_DIFFUSERS_BLOCK = re.compile(rf"(down|up)_blocks\.{_NUMBER}\.(?:resnets|attentions)\.{_NUMBER}\.")


class UNetNames:
    """Translates names of one UNet; `shapes` maps some or all of its parameters, in either naming, to shapes."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        modules = _modules(shapes)
        self._to_ldm = {**modules, **_labels("add_embedding"), **_labels("class_embedding")}
        # Both embeddings have the same place; of the models in this layout only SD 2.x unCLIP has the other one.
        own_labels = _labels("class_embedding" if context_width(shapes) == _UNCLIP_CONTEXT else "add_embedding")
        self._to_diffusers = {ldm: diffusers for diffusers, ldm in {**modules, **own_labels}.items()}

    def to_comfy(self, name: str) -> Part | None:
        """The place of a diffusers parameter, or None for a name that this UNet cannot have."""
        translated = _translate(name, self._to_ldm, _RESIDUAL)
        return None if translated is None else Part(translated)

    def to_diffusers(self, name: str) -> dict[str, Part]:
        """The diffusers parameter that a parameter holds (always one in a UNet); empty for a name it cannot have."""
        translated = _translate(name, self._to_diffusers, {ldm: own for own, ldm in _RESIDUAL.items()})
        return {} if translated is None else {translated: Part(name)}


def context_width(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Width of the text embedding that the UNet's cross-attention takes, if one of its weights is named."""
    return next((shape[-1] for name, shape in shapes.items() if shape and name.endswith("attn2.to_k.weight")), None)


def is_unet(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether parameters are those of a UNet in this layout, or some of them, in either naming.

    A whole one under LDM's names may have further layers in its blocks, as those for video have. Under diffusers' names
    there are too many models with blocks of the same name and other layers: there every layer must be known.
    """
    return all(f"{module}.weight" in shapes for module in _LDM_MUST_HAVE) or has_known_blocks(shapes)


def has_way_up(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether parameters, in either naming, have blocks on the way up, as a whole UNet must: a ControlNet has the other
    half of one."""
    return any(name.startswith(("up_blocks.", "output_blocks.")) for name in shapes)


def has_known_blocks(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether parameters, in either naming, have blocks, and nothing in them that this layout has not, but for what is
    put into a model afterwards.

    In a whole model every one must have its place; a few may be in blocks whose place they are too few to tell.
    """
    in_blocks = [name for name in shapes if name.startswith(_BLOCKS)]
    if not _is_whole(shapes):
        return bool(in_blocks) and all(map(_IN_A_BLOCK.fullmatch, in_blocks))
    names = UNetNames(shapes)
    return bool(in_blocks) and all(names.to_comfy(n) or names.to_diffusers(n) or _ADDED.search(n) for n in in_blocks)


def _translate(name: str, modules: Mapping[str, str], residual: Mapping[str, str]) -> str | None:
    """`name` with its module exchanged, None if there is no such module. residual: names inside a residual block."""
    words = name.split(".")
    for length in range(len(words) - 1, 0, -1):
        module, inner = ".".join(words[:length]), ".".join(words[length:-1])
        if module not in modules:
            continue
        both = module + modules[module]
        if ".resnets." in both:
            inner = residual.get(inner)
        elif ".attentions." in both:
            inner = inner if _ATTENTION.fullmatch(inner) else None
        elif inner:
            inner = None
        return None if inner is None else ".".join(filter(None, (modules[module], inner, words[-1])))
    return None


def _modules(names: Collection[str]) -> dict[str, str]:
    """Modules of a UNet: diffusers → LDM."""
    blocks = _residual_blocks(names)
    modules = dict(_ENDS)
    number = 1
    for level, count in enumerate(blocks):
        for i in range(count):
            modules[f"down_blocks.{level}.resnets.{i}"] = f"input_blocks.{number}.0"
            modules[f"down_blocks.{level}.attentions.{i}"] = f"input_blocks.{number}.1"
            number += 1
        modules[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    number = 0
    for level, count in enumerate(reversed(blocks)):
        for i in range(count + 1):
            modules[f"up_blocks.{level}.resnets.{i}"] = f"output_blocks.{number}.0"
            modules[f"up_blocks.{level}.attentions.{i}"] = f"output_blocks.{number}.1"
            number += 1
        place = _upsampler_place(names, level, number - 1)
        if place is not None:
            modules[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{place}.conv"
    return modules


def _upsampler_place(names: Collection[str], level: int, number: int) -> int | None:
    """Where in its LDM block an upsampler stands: after the residual block, and the attention if there is one.

    None if the names do not tell.
    """
    for place in (1, 2):
        if any(name.startswith(f"output_blocks.{number}.{place}.conv.") for name in names):
            return place
    if any(name.startswith(f"up_blocks.{level}.attentions.") for name in names):
        return 2
    return 1 if _is_whole(names) or any(".attentions." in name for name in names) else None


def _residual_blocks(names: Collection[str]) -> list[int]:
    """Number of residual blocks of each level, from the top; empty if a few names contradict the usual two."""
    counts = _numbered_blocks(names)
    if not _is_whole(names):
        contradicted = any(count != _USUAL_BLOCKS + (way == "up") for (way, _), count in counts.items())
        return [] if contradicted else [_USUAL_BLOCKS] * _USUAL_LEVELS
    if found := [match for name in names if (match := _LDM_BLOCK.match(name))]:
        ends = {int(match[1]) for match in found if match["down"]}
        edges = [0, *sorted(ends), 1 + max(int(match[1]) for match in found)]
        return [end - begin - 1 for begin, end in zip(edges, edges[1:])]
    return [counts["down", level] for level in sorted(level for way, level in counts if way == "down")]


def _numbered_blocks(names: Collection[str]) -> dict[tuple[str, int], int]:
    """How many blocks diffusers names show in each level: by ("down" or "up", level)."""
    counts: dict[tuple[str, int], int] = {}
    for match in filter(None, map(_DIFFUSERS_BLOCK.match, names)):
        level = match[1], int(match[2])
        counts[level] = max(counts.get(level, 0), int(match[3]) + 1)
    return counts


def _is_whole(names: Collection[str]) -> bool:
    """Whether these are all names of a model: no adapter, and no delta of chosen layers, has the first convolution's
    bias and the last norm."""
    return {"conv_in.bias", "conv_norm_out.bias"} <= set(names) or {"input_blocks.0.0.bias", "out.0.bias"} <= set(names)


def _labels(embedding: str) -> dict[str, str]:
    return {f"{embedding}.{own}": ldm for own, ldm in _LABELS.items()}
