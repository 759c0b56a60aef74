"""What PEFT makes of a SHiRA folder, on a model of diffusers'."""

import copy
from pathlib import Path

import peft
import torch

from benchmarks.readers_.cases import Case, changes_between


def changes_in(case: Case, path: Path) -> dict[str, torch.Tensor]:
    """What PeftModel.from_pretrained and merge_and_unload change in the case's model, by diffusers' names."""
    model = copy.deepcopy(case.model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    merged = peft.PeftModel.from_pretrained(model, path).merge_and_unload()
    return changes_between(before, merged.state_dict())
