"""What a file that is not a delta of ours looks like, judged by its tensor names."""

from collections.abc import Iterable

_SIGNS = (
    ("a LoRA", (".lora_up.weight", ".lora_down.weight", ".lora_A.weight", ".lora_B.weight", ".lora.up.weight")),
    ("a LoHa or LoKr adapter (LyCORIS)", (".hada_w1_a", ".hada_w1_b", ".lokr_w1", ".lokr_w1_a", ".lokr_w2")),
    ("an OFT or BOFT adapter", (".oft_blocks", ".oft_diag")),
    ("a dense weight difference", (".diff", ".diff_b", ".set_weight")),
)
_ADAPTER = "Load it with the Load LoRA node instead"
_CHECKPOINT = "Load it with the Load Checkpoint or Load Diffusion Model node instead"


def describe(names: Iterable[str]) -> str:
    """One sentence for an error message: what the file seems to be, and which node loads it."""
    names = list(names)
    for what, endings in _SIGNS:
        if any(name.endswith(endings) for name in names):
            return f"It looks like {what}. {_ADAPTER}."
    if any(name.startswith(("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")) for name in names):
        return f"It looks like a whole checkpoint. {_CHECKPOINT}."
    if any(name.endswith(".weight") for name in names):
        return f"It looks like the weights of a model. {_CHECKPOINT}."
    return "Choose a file that was saved by SaRA Save."
