"""What a delta calls the weights of text encoders, and what people call these encoders.

A text encoder's weight has the name `text_encoders.<encoder>.<its name in the encoder>`: that of ComfyUI's loaded CLIP
behind `text_encoders.`, as in `text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight`.
"""

from collections.abc import Collection, Iterable

TEXT_PREFIX = "text_encoders."

CLIP_L, CLIP_G, CLIP_H, T5_XXL, UMT5_XXL = "clip_l", "clip_g", "clip_h", "t5xxl", "umt5xxl"
_TITLES = {
    CLIP_L: "CLIP-L",
    CLIP_G: "CLIP-G",
    CLIP_H: "CLIP-H",
    T5_XXL: "T5-XXL",
    UMT5_XXL: "UMT5-XXL",
    "pile_t5xl": "Pile-T5-XL",
    "t5base": "T5-base",
    "qwen25_7b": "Qwen2.5-VL 7B",
    "qwen3_4b": "Qwen3 4B",
    "qwen3_8b": "Qwen3 8B",
    "gemma2_2b": "Gemma 2 2B",
    "mistral3_24b": "Mistral Small 3",
}


def is_of_text_encoder(name: str) -> bool:
    """Whether a weight of this name is one of a text encoder."""
    return name.startswith(TEXT_PREFIX)


def encoder_of(name: str) -> str:
    """Which text encoder a weight is of: "clip_l". name: of a text encoder's weight"""
    return name.removeprefix(TEXT_PREFIX).partition(".")[0]


def encoders_of(names: Iterable[str]) -> list[str]:
    """The text encoders that weights of these names are of, in the order in which people name them."""
    known = list(_TITLES)
    found = {encoder_of(name) for name in names if is_of_text_encoder(name)}
    return sorted(found, key=lambda encoder: (known.index(encoder) if encoder in known else len(known), encoder))


def title_of(encoder: str) -> str:
    """What people call a text encoder: "CLIP-L"; its name where that is all that is known."""
    return _TITLES.get(encoder, encoder)


def titles_of(names: Collection[str]) -> str:
    """The text encoders that weights of these names are of, for a sentence: "CLIP-L and CLIP-G"."""
    *first, last = map(title_of, encoders_of(names))
    return f"{', '.join(first)} and {last}" if first else last
