"""What checkpoint files call the weights of text encoders: their places by a delta's names (text_encoders.py).

Some files have CLIP as OpenCLIP publishes it, where the weights of query, key and value are one: a delta's weight is a
part of the file's.
"""

import re
from collections.abc import Iterable, Mapping

from .parts import Part
from .text_encoders import CLIP_G, CLIP_H, CLIP_L, TEXT_PREFIX

Shapes = Mapping[str, tuple[int, ...]]

# Before the names of encoders that are stored as transformers has them.
_TRANSFORMERS = {"cond_stage_model.": CLIP_L, "conditioner.embedders.0.": CLIP_L}
# Before the names of OpenCLIP's; None: the width of the encoder tells which it is.
_OPEN_CLIP = {"conditioner.embedders.1.model.": CLIP_G, "conditioner.embedders.0.model.": None,
              "cond_stage_model.model.": None}  # fmt: skip
_WIDTH_OF_CLIP_H = 1024

_LAYER = r"transformer\.resblocks\.(\d+)\."
_RENAMED = tuple((re.compile(theirs), own) for theirs, own in (
    (r"positional_embedding", "transformer.text_model.embeddings.position_embedding.weight"),
    (r"token_embedding\.weight", "transformer.text_model.embeddings.token_embedding.weight"),
    (r"ln_final\.(weight|bias)", r"transformer.text_model.final_layer_norm.\1"),
    (_LAYER + r"ln_([12])\.(weight|bias)", r"transformer.text_model.encoder.layers.\1.layer_norm\2.\3"),
    (_LAYER + r"mlp\.c_fc\.(weight|bias)", r"transformer.text_model.encoder.layers.\1.mlp.fc1.\2"),
    (_LAYER + r"mlp\.c_proj\.(weight|bias)", r"transformer.text_model.encoder.layers.\1.mlp.fc2.\2"),
    (_LAYER + r"attn\.out_proj\.(weight|bias)", r"transformer.text_model.encoder.layers.\1.self_attn.out_proj.\2"),
    (r"text_projection(\.weight)?", "transformer.text_projection.weight"),
    (r"logit_scale", "logit_scale"),
))  # fmt: skip
_FUSED = re.compile(_LAYER + r"attn\.in_proj_(weight|bias)")
_WITHOUT_MIDDLE = re.compile(r"transformer\.(?=encoder\.|embeddings\.|final_layer_norm\.)")


def text_parts(shapes: Shapes) -> dict[str, Part]:
    """A delta's name of each weight of the text encoders that a file has → its place there.

    shapes: name → shape of all the file's tensors
    """
    parts: dict[str, Part] = {}
    for name in shapes:
        if name.startswith(TEXT_PREFIX):
            parts[name] = Part(name)
        elif prefix := _beginning(name, _OPEN_CLIP):
            encoder = _OPEN_CLIP[prefix] or _by_width(shapes, prefix)
            parts |= {f"{TEXT_PREFIX}{encoder}.{own}": part for own, part in _of_open_clip(name, prefix)}
        elif prefix := _beginning(name, _TRANSFORMERS):
            own = _WITHOUT_MIDDLE.sub("transformer.text_model.", name.removeprefix(prefix))
            parts[f"{TEXT_PREFIX}{_TRANSFORMERS[prefix]}.{own}"] = Part(name)
    return parts


def is_turned(part: Part) -> bool:
    """Whether a file has this weight with its rows as columns: OpenCLIP's last projection."""
    return part.name.endswith(".text_projection")


def _beginning(name: str, prefixes: Iterable[str]) -> str | None:
    return next((prefix for prefix in prefixes if name.startswith(prefix)), None)


def _of_open_clip(name: str, prefix: str) -> Iterable[tuple[str, Part]]:
    theirs = name.removeprefix(prefix)
    if fused := _FUSED.fullmatch(theirs):
        layer, kind = fused.groups()
        for first, row in enumerate("qkv"):
            own = f"transformer.text_model.encoder.layers.{layer}.self_attn.{row}_proj.{kind}"
            yield own, Part(name, first, 1, 3)
        return
    for pattern, own in _RENAMED:
        if found := pattern.fullmatch(theirs):
            yield found.expand(own), Part(name)


def _by_width(shapes: Shapes, prefix: str) -> str:
    return CLIP_H if shapes.get(f"{prefix}ln_final.weight") == (_WIDTH_OF_CLIP_H,) else CLIP_G
