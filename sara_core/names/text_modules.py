"""What adapter files call the modules of text encoders, by a delta's names (text_encoders.py).

Trainers number the encoders of a pipeline (`lora_te1_`, `text_encoder_2.`), and which one a number means differs: T5 is
the second encoder of Flux for one trainer, the third for another. So a module's own name tells what kind of encoder it
is of, and only between those of a kind the number and the model's family do.
"""

import re

from .text_encoders import CLIP_G, CLIP_H, CLIP_L, T5_XXL, TEXT_PREFIX, UMT5_XXL
from .wrapping import without_wrapping

_UNNAMED = TEXT_PREFIX + "transformer."
_NAMED = re.compile(r"(?!te\d?\.|text_encoder)[a-z]\w*\.transformer\..+")
_NUMBERED = re.compile(
    r"(?:lora_|lycoris_)?(?P<prior>prior_)?(?:te|text_encoder)_?(?P<number>\d?)[._](?P<module>.+)"
    r"|text_encoders\.transformer\.(?P<bare>.+)"
    r"|(?P<alone>text_model\..+)"
)  # fmt: skip

# Names whose dots are underscores: (what such a name is, the same with dots). What is trained with
# transformers 5 has no `text_model` before CLIP's.
_FLAT = (
    (r"(?:text_model_)?encoder_layers_(\d+)_(self_attn|mlp)_(\w+)", r"text_model.encoder.layers.\1.\2.\3"),
    (r"(?:text_model_)?encoder_layers_(\d+)_(layer_norm[12])", r"text_model.encoder.layers.\1.\2"),
    (r"(?:text_model_)?embeddings_((?:token|position)_embedding)", r"text_model.embeddings.\1"),
    (r"(?:text_model_)?final_layer_norm", r"text_model.final_layer_norm"),
    (r"encoder_block_(\d+)_layer_(\d)_(SelfAttention|DenseReluDense)_(\w+)", r"encoder.block.\1.layer.\2.\3.\4"),
    (r"encoder_block_(\d+)_layer_(\d)_layer_norm", r"encoder.block.\1.layer.\2.layer_norm"),
    (r"encoder_final_layer_norm", r"encoder.final_layer_norm"),
    (r"(?:model_)?layers_(\d+)_(self_attn|mlp)_(\w+)", r"model.layers.\1.\2.\3"),
)
# Early diffusers called the projections of attention otherwise.
_EARLY = re.compile(r"(\.self_attn\.)to_(q|k|v|out)$")

# Of each kind its modules' names, and what they are called behind the encoder's `transformer.`
_CLIP = (re.compile(r"(?:text_model\.)?((?:encoder\.layers|embeddings|final_layer_norm)\b.*)"), r"text_model.\1")
_CLIP_PROJECTION = (re.compile(r"(text_projection)"), r"\1")
_T5 = (re.compile(r"((?:encoder\.block|encoder\.final_layer_norm|shared)\b.*)"), r"\1")
_LANGUAGE = (
    re.compile(r"(?:model\.)?(?:language_model\.)?(?:model\.)?((?:layers|embed_tokens|norm)\b.*)"), r"model.\1"
)  # fmt: skip

_ONLY_CLIP = {"SD2.1": CLIP_H, "SDXL Refiner": CLIP_G}
_CLIP_BY_NUMBER = {"": CLIP_L, "1": CLIP_L, "2": CLIP_G}
_T5_OF = {"Wan 2.1": UMT5_XXL, "Wan 2.2": UMT5_XXL}
_LANGUAGE_OF = {"Qwen-Image": "qwen25_7b", "Z-Image": "qwen3_4b"}


def own_module(name: str, family: str | None) -> str | None:
    """The name that a delta has for a text encoder's module, without ".weight": None for one that it has none for.

    name: in an adapter file; family: of the model that the file is for, if it is known
    """
    name = without_wrapping(name)
    if name.startswith(TEXT_PREFIX) and not name.startswith(_UNNAMED):
        return name
    if _NAMED.fullmatch(name):
        return TEXT_PREFIX + name
    if not (found := _NUMBERED.fullmatch(name)):
        return None
    module = found["module"] or found["bare"] or found["alone"]
    module = _EARLY.sub(r"\1\2_proj", _dotted(without_wrapping(module)))
    number = "2" if found["prior"] else found["number"] or ""
    for (pattern, own), encoder in (
        (_CLIP, _clip(number, family)),
        (_CLIP_PROJECTION, _clip(number, family)),
        (_T5, _T5_OF.get(family, T5_XXL)),
        (_LANGUAGE, _LANGUAGE_OF.get(family)),
    ):
        if pattern.fullmatch(module):
            return None if encoder is None else f"{TEXT_PREFIX}{encoder}.transformer.{pattern.sub(own, module)}"
    return None


def _clip(number: str, family: str | None) -> str | None:
    return _ONLY_CLIP.get(family) or _CLIP_BY_NUMBER.get(number)


def _dotted(module: str) -> str:
    """A module's name with its dots, where a trainer made underscores of them."""
    for flat, dotted in _FLAT:
        if found := re.fullmatch(flat, module):
            return found.expand(dotted)
    return module
