"""Small text encoders beside the models, and a delta's names for their weights."""

from collections.abc import Callable

import torch
import transformers

from sara_core.names.text_encoders import CLIP_G, CLIP_L, T5_XXL, TEXT_PREFIX

# Which encoders a delta of the family has in a case with text encoders.
ENCODERS = {"SD1.5": (CLIP_L,), "SDXL": (CLIP_L, CLIP_G), "SD3": (CLIP_L, CLIP_G, T5_XXL), "Flux": (CLIP_L, T5_XXL)}
# What a pipeline calls them, in the order in which it has them.
PLACES = ("text_encoder", "text_encoder_2", "text_encoder_3")
# InvokeAI tells SD1.5 and SDXL by these widths too.
WIDTHS = {CLIP_L: 768, CLIP_G: 1280}


def text_encoders(family: str) -> dict[str, torch.nn.Module]:
    """Encoder → a model of transformers' with random weights, as wide as the real one where programs look at that."""
    torch.manual_seed(0)
    return {encoder: _MAKERS[encoder]() for encoder in ENCODERS[family]}


def own_weights(encoder: str, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A delta's name → weight of an encoder: parameters, each once."""
    return {own_name(encoder, name): parameter.detach() for name, parameter in model.named_parameters()}


def own_name(encoder: str, name: str) -> str:
    """A delta's name for a weight. name: in transformers' model, which has `text_model.` in some versions"""
    if encoder != T5_XXL and not name.startswith("text_projection"):
        name = "text_model." + name.removeprefix("text_model.")
    return f"{TEXT_PREFIX}{encoder}.transformer.{name}"


def _clip(kind: type, encoder: str) -> torch.nn.Module:
    width = WIDTHS[encoder]
    return kind(
        transformers.CLIPTextConfig(
            vocab_size=49, hidden_size=width, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            projection_dim=32, max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        )
    ).eval()  # fmt: skip


def _t5() -> torch.nn.Module:
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=49, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    ).eval()  # fmt: skip


_MAKERS: dict[str, Callable[[], torch.nn.Module]] = {
    CLIP_L: lambda: _clip(transformers.CLIPTextModel, CLIP_L),
    CLIP_G: lambda: _clip(transformers.CLIPTextModelWithProjection, CLIP_G),
    T5_XXL: _t5,
}
