"""What the parts of an adapter's modules are called in files, and which files have such parts."""

from collections.abc import Collection

# The same part has had several names; the longest ending that fits a tensor's name counts.
PARTS = {
    ".lora_up.weight": "up", ".lora_down.weight": "down", ".lora_mid.weight": "mid",
    ".lora_B.weight": "up", ".lora_A.weight": "down",
    ".lora_B.default.weight": "up", ".lora_A.default.weight": "down",
    ".lora_B": "up", ".lora_A": "down",
    ".lora.up.weight": "up", ".lora.down.weight": "down",
    "_lora.up.weight": "up", "_lora.down.weight": "down",
    ".lora_linear_layer.up.weight": "up", ".lora_linear_layer.down.weight": "down",
    ".up.weight": "up", ".down.weight": "down",
    ".alpha": "alpha",
    **{f".hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{part}": f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    ".oft_blocks": "oft_blocks", ".rescale": "rescale",
    **{f".{part}.weight": part for part in ("a1", "a2", "b1", "b2")},
    ".dora_scale": "dora_scale",
    **{f".lora_magnitude_vector{end}": "magnitude" for end in ("", ".weight", ".default.weight", ".default")},
    ".diff": "diff", ".w_norm": "diff",
    ".set_weight": "set",
    ".reshape_weight": "shape",
    ".diff_b": "bias", ".b_norm": "bias",
    ".lora_B.bias": "lora_bias", ".lora_B.default.bias": "lora_bias",
}  # fmt: skip

_GLORA = (".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight")
# A model may have parameters called so too.
_OF_MODELS = {".alpha", ".rescale", ".up.weight", ".down.weight", *_GLORA}
_OF_ADAPTERS = (
    *PARTS.keys() - _OF_MODELS, ".on_input", ".oft_diag", "_lora1.up.weight", "_lora2.up.weight",
)  # fmt: skip


def are_of_an_adapter(names: Collection[str]) -> bool:
    """Whether tensors of these names are an adapter's, not a model's."""
    return any(name.endswith(_OF_ADAPTERS) for name in names) or all(
        any(name.endswith(ending) for name in names) for ending in _GLORA
    )
