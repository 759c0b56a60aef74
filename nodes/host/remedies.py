"""What people in ComfyUI can do about a file that is not taken as it is."""

from collections.abc import Collection

from ...sara_core.conversion import registry
from ...sara_core.conversion.remedies import ADAPTER, BASE, CONVERT, MIXED, MODEL, UNKNOWN, Remedies

REMEDIES: Remedies = {
    ADAPTER: "Load it with the Load LoRA node instead.",
    CONVERT: "Convert it with the SaRA Convert node first.",
    MODEL: "Load it with the Load Checkpoint or Load Diffusion Model node instead.",
    MIXED: "Load it with the Load LoRA node, which takes both.",
    UNKNOWN: "Choose a file that was saved by SaRA Save.",
    BASE: "give it, a checkpoint or a diffusers folder, as base_name in SaRA Convert or as --base.",
}


def advice(names: Collection[str]) -> str:
    """For SparseDelta.load: what a file that is no delta seems to be, and which node takes it."""
    return registry.advice(names, REMEDIES)
