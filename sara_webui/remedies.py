"""What people in a WebUI can do about a file that is not taken as it is."""

from collections.abc import Collection

from sara_core.conversion import registry
from sara_core.conversion.remedies import ADAPTER, BASE, CONVERT, MIXED, MODEL, UNKNOWN, Remedies

REMEDIES: Remedies = {
    ADAPTER: "Put it into models/Lora and use a lora tag instead.",
    CONVERT: "Convert it to a delta first.",
    MODEL: "Choose it as the checkpoint instead.",
    MIXED: "Get the delta in a file of its own.",
    UNKNOWN: "Choose a file that was saved as a delta.",
    BASE: "give it, a checkpoint, as the base.",
}


def advice(names: Collection[str]) -> str:
    """For SparseDelta.load: what a file that is no delta seems to be, and where it belongs."""
    return registry.advice(names, REMEDIES)
