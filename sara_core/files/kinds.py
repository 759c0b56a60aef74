"""What a file holds, judged by its tensor names."""

import re
from collections.abc import Collection, Iterable

SARA, SHIRA, SUPER_TUNING, ADAPTER, MODEL = "sara", "shira", "super-tuning", "adapter", "model"

_ADAPTER = "Load it with the Load LoRA node instead"
_CHECKPOINT = "Load it with the Load Checkpoint or Load Diffusion Model node instead"
_CONVERT = "Convert it with the SaRA Convert node first"

# The same part has had several names; the longest ending that fits a tensor's name counts.
ADAPTER_PARTS = {
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

_SARA_PART = re.compile(r".+\.sara\d+_\w+", re.DOTALL)
_PEFT_SPARSE = {SHIRA: ".shira_weight", SUPER_TUNING: ".supertuning_values"}
_GLORA = (".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight")
# A model may have parameters called so too.
_OF_MODELS = {".alpha", ".rescale", ".up.weight", ".down.weight", *_GLORA}
_ADAPTER_ENDINGS = (
    *ADAPTER_PARTS.keys() - _OF_MODELS, ".on_input", ".oft_diag", "_lora1.up.weight", "_lora2.up.weight",
)  # fmt: skip
_SIGNS = (
    (_ADAPTER, "a LoRA", (".lora_up.weight", ".lora_down.weight", ".lora_A.weight", ".lora_B.weight",
                          ".lora.up.weight", "_lora1.up.weight")),
    (_ADAPTER, "a LoHa or LoKr adapter (LyCORIS)", (".hada_w1_a", ".hada_w1_b", ".lokr_w1", ".lokr_w1_a", ".lokr_w2")),
    (_ADAPTER, "an OFT or BOFT adapter", (".oft_blocks", ".oft_diag")),
    (_CONVERT, "an IA³ adapter (LyCORIS)", (".on_input",)),
    (_ADAPTER, "a dense weight difference", (".diff", ".diff_b", ".set_weight")),
    (_CONVERT, "a sparse adapter of PEFT", tuple(_PEFT_SPARSE.values())),
)  # fmt: skip


def describe(names: Iterable[str]) -> str:
    """One sentence for an error message: what the file seems to be, and which node loads it."""
    names = list(names)
    for remedy, what, endings in _SIGNS:
        if any(name.endswith(endings) for name in names):
            return f"It looks like {what}. {remedy}."
    if any(name.startswith(("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")) for name in names):
        return f"It looks like a whole checkpoint. {_CHECKPOINT}."
    if any(name.endswith(".weight") for name in names):
        return f"It looks like the weights of a model. {_CHECKPOINT}."
    return "Choose a file that was saved by SaRA Save."


def kind(names: Collection[str]) -> str | None:
    """Which of the kinds above the file is, None for a file that is none of them."""
    if any(_SARA_PART.fullmatch(name) for name in names):
        return SARA
    for sparse, ending in _PEFT_SPARSE.items():
        if any(name.endswith(ending) for name in names):
            return sparse
    if any(name.endswith(_ADAPTER_ENDINGS) for name in names) or all(
        any(name.endswith(ending) for name in names) for ending in _GLORA
    ):
        return ADAPTER
    return MODEL if any(name.endswith(".weight") for name in names) else None
