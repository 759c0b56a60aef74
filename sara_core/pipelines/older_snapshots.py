"""Snapshots that `python -m sara_core train` wrote before it had all settings of a run."""

from collections.abc import Mapping

from ..files.saved_state import fields
from ..training.record import BEFORE_RANGES

# What the settings that it lacked were at that time; they stay so, whatever the defaults become.
_THEN = {
    "layers": "all layers", "include": [], "exclude": [], "optimizer": "AdamW", "schedule": "constant",
    "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0, "noise_levels": "uniform", "noise_level_mean": 0.0,
    "noise_level_std": 1.0, "min_snr_gamma": 0.0, "caption_dropout": 0.0, "prior_weight": 1.0,
}  # fmt: skip
_OLD_NAME, _NAME = "accumulation", "grad_accumulation"


def as_written_now(state: Mapping, saved: Mapping) -> tuple[Mapping, Mapping]:
    """State and settings of a snapshot in today's form; what is in it already stays as it is.

    Raises DeltaError if they can be neither.
    """
    saved = {**BEFORE_RANGES, "buckets": False, **saved}
    if _OLD_NAME not in saved:
        return state, saved
    fields(saved, "the table of its settings", ("selection", "learning_rate", "adjust_at"))
    fields(state, "it", ("batches",))
    kept = {name: value for name, value in saved.items() if name != _OLD_NAME}
    settings = {
        **_THEN, **kept, _NAME: saved[_OLD_NAME],
        "selection": {"rule": "smallest", **fields(saved["selection"], "its selection", ())},
        "learning_rate": saved["learning_rate"] or 0.0,
        "adjust_at": [saved["adjust_at"]] if saved["adjust_at"] else [],
    }  # fmt: skip
    return {**state, "batches": {"images": state["batches"], "class_images": None}}, settings
