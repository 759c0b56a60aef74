"""What the parts of an adapter's modules are called in files."""

# The same part has had several names; the longest ending that fits a tensor's name counts. PEFT's are without the name
# of their adapter (peft.plain_names).
PARTS = {
    ".lora_up.weight": "up", ".lora_down.weight": "down", ".lora_mid.weight": "mid",
    ".lora_B.weight": "up", ".lora_A.weight": "down",
    ".lora_B": "up", ".lora_A": "down",
    ".lora.up.weight": "up", ".lora.down.weight": "down",
    "_lora.up.weight": "up", "_lora.down.weight": "down",
    ".lora_linear_layer.up.weight": "up", ".lora_linear_layer.down.weight": "down",
    ".up.weight": "up", ".down.weight": "down",
    ".alpha": "alpha",
    **{f".hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{part}": f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    ".oft_blocks": "oft_blocks", ".rescale": "rescale",
    **{f".{part}.weight": part for part in ("a1", "a2", "b1", "b2", "bm")},
    ".ia3_l": "ia3",
    ".dora_scale": "dora_scale",
    ".lora_magnitude_vector": "magnitude", ".lora_magnitude_vector.weight": "magnitude",
    **{f".bias_{part}": f"remainder_{part}" for part in ("indices", "values", "size")},
    ".diff": "diff", ".w_norm": "diff",
    ".set_weight": "set", ".ln_tuning_layers.weight": "set",
    ".reshape_weight": "shape",
    ".diff_b": "bias", ".b_norm": "bias",
    ".ln_tuning_layers.bias": "set_bias",
    ".lora_B.bias": "lora_bias",
}  # fmt: skip
