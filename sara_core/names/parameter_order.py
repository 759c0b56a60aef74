"""The order in which a diffusers UNet lists its parameters, which the SaRA authors' files count by.

It is the order in which the modules are made: the way down and up before the middle, attention before the residual
blocks of a level. Stored files are sorted by name instead, so the order has to be known.
"""

from collections.abc import Iterable

from ..errors import DeltaError

# Siblings of any module, in their order. Whoever has the same parent stands here in that parent's order.
_ORDER = (
    "conv_in", "time_embedding", "class_embedding", "add_embedding", "down_blocks", "up_blocks", "mid_block",
    "conv_norm_out", "conv_out",
    "attentions", "resnets", "downsamplers", "upsamplers",
    "norm", "proj_in", "transformer_blocks", "proj_out",
    "norm1", "conv1", "time_emb_proj", "attn1", "norm2", "conv2", "conv_shortcut", "attn2", "norm3", "ff",
    "to_q", "to_k", "to_v", "to_out", "net", "proj", "conv", "linear_1", "linear_2",
    "weight", "bias",
)  # fmt: skip
_RANK = {word: rank for rank, word in enumerate(_ORDER)}


def parameter_order(names: Iterable[str]) -> list[str]:
    """The names as `model.parameters()` of the UNet gives them.

    Raises DeltaError for a name that no UNet of SD 1.x, SD 2.x or SDXL has.
    """
    return sorted(names, key=_place)


def _place(name: str) -> tuple[int, ...]:
    words = name.split(".")
    unknown = [word for word in words if word not in _RANK and not _is_number(word)]
    if unknown:
        raise DeltaError(
            f"The place of '{name}' among the model's parameters is not known: files of the SaRA authors' optimizers "
            "can be converted for UNets of SD 1.x, SD 2.x and SDXL."
        )
    return tuple(int(word) if _is_number(word) else _RANK[word] for word in words)


def _is_number(word: str) -> bool:
    # Other digits than these are not all numbers to Python, and of very long ones it reads none.
    return word.isascii() and word.isdigit() and len(word) <= 18
