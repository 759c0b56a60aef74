"""What an adapter's numbers mean: what was trained, or what ComfyUI makes of them where that is something else."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ...tensors.elements import sum_of_squares
from .alpha import Alpha
from .change import BY_THE_BASE
from .remainder import PARTS as REMAINDER

TRAINED, COMFYUI = "trained", "comfyui"
READINGS = (TRAINED, COMFYUI)

# Below this share of the change the two differ by rounding only.
_ROUNDING = 1e-5
# Elements that are squared at a time: in float64, they take twice the memory.
_CHUNK = 2**20


def as_comfyui(
    tensors: Mapping[str, torch.Tensor], alpha: Alpha, from_settings: bool, rows: int
) -> tuple[dict[str, torch.Tensor], Alpha, list[str]]:
    """A module's tensors by part and its alpha, so that `change` of them is what ComfyUI makes of it; and in which ways
    that differs from what was trained.

    from_settings: whether the alpha stands in settings beside the tensors; rows: of the weight
    """
    tensors, ways = dict(tensors), []
    if from_settings and alpha.value is not None:
        alpha = Alpha()
        ways.append("settings that it does not read")
    if "dora_scale" in tensors and tensors["dora_scale"].shape[:1] == (rows,):
        tensors[BY_THE_BASE] = tensors.pop("dora_scale")
        ways.append("DoRA by rows")
    if tensors.pop("magnitude", None) is not None:
        ways.append("DoRA of PEFT")
    if "oft_blocks" in tensors:
        if alpha.value and rows:
            alpha = Alpha(alpha.value / rows)
            ways.append("the bound of a rotation")
        if tensors["oft_blocks"].dim() == 4 and alpha.value is None:
            tensors = {"oft_blocks": torch.zeros_like(tensors["oft_blocks"])}
            ways.append("a BOFT without alpha")
        if tensors["oft_blocks"].dim() == 3 and tensors.pop("rescale", None) is not None:
            ways.append("the rescaling of an OFT")
    if REMAINDER[1] in tensors:
        tensors = {part: tensor for part, tensor in tensors.items() if part not in REMAINDER}
        ways.append("a sparse remainder")
    return tensors, alpha, ways


@dataclass
class Difference:
    """How far the reading that was not chosen is from the one that was, over a whole file.

    ways: in which ways modules are read differently
    """

    ways: set[str] = field(default_factory=set)
    _squares: float = 0.0
    _between: float = 0.0

    def add(self, chosen: torch.Tensor) -> None:
        """Count a module in. chosen: its change by the chosen reading"""
        self._squares += _squares(chosen)

    def add_between(self, chosen: torch.Tensor, other: torch.Tensor, ways: list[str]) -> None:
        """Count in what lies between the readings of a module. chosen, other: its change by either, of one shape"""
        self.ways.update(ways)
        self._between += _squares(chosen - other)

    def text(self, reading: str) -> str | None:
        """A line for people; None where there is nothing to tell. reading: the chosen one"""
        if not self._between > _ROUNDING**2 * self._squares:
            return None
        share = math.sqrt(self._between / self._squares) if self._squares else math.inf
        ways = ", ".join(sorted(self.ways))
        if reading == COMFYUI:
            return f"As ComfyUI shows it. What was trained is another change, by {share:.1%} of this one ({ways})."
        return (
            f"As it was trained. ComfyUI itself shows another change, by {share:.1%} of this one ({ways}); the reading "
            f"'{COMFYUI}' gives that."
        )


def _squares(change: torch.Tensor) -> float:
    return sum(map(sum_of_squares, change.reshape(-1).split(_CHUNK)))
