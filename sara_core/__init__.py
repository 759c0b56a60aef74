"""SaRA: sparse fine-tuning of diffusion models by their smallest weights, without a host.

    optimizer = sara_core.SaRA(model, threshold=2e-3)      # in place of an ordinary torch optimizer
    ...                                                    # the usual training loop
    optimizer.delta().save("style.safetensors")
    sara_core.SparseDelta.load("style.safetensors").apply_(model, strength=0.8)
"""

from .delta import SparseDelta, SparseEntry
from .errors import DeltaError, SaRAError, SelectionError, TrainingError, UnsupportedModelError
from .extraction.extract import extract
from .merging.merge import merge
from .selection.select import Selection, select
from .training.optimizer import SaRA, learning_rate_for

__all__ = [
    "DeltaError", "SaRA", "SaRAError", "Selection", "SelectionError", "SparseDelta", "SparseEntry",
    "TrainingError", "UnsupportedModelError", "extract", "learning_rate_for", "merge", "select",
]
