"""How many of a model's weights lie below each θ, and what there is to gain and to lose by training those."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..delta.describe import file_size
from ..tensors.elements import where_float64_is

# Ten values of θ to a power of ten, in numbers that people would type.
THETAS = tuple(float(f"{m}e{p}") for p in range(-6, 0) for m in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)) + (1.0,)
# Per trained element, 4 bytes each: Δ, its gradient, AdamW's two moments, its position, its base value, and what
# AdamW needs in passing.
TRAINING_BYTES = 28

_CHUNK = 1 << 21


@dataclass(frozen=True)
class ThetaRow:
    """What θ offers.

    elements: with |w| < θ; density: as a share of all
    file_bytes: of a delta with fp32 values; training_bytes: needed beside the model, with AdamW
    zeroed: Frobenius norm of these elements relative to that of all: how far the weights are from where they were
        when every one of these is set to zero
    """

    theta: float
    elements: int
    density: float
    file_bytes: int
    training_bytes: int
    zeroed: float

    @property
    def is_round(self) -> bool:
        """Whether θ is a number for a short table: 1, 2, 5 or 8 (a θ of the paper) times a power of ten."""
        return f"{self.theta:.1e}"[:3] in ("1.0", "2.0", "5.0", "8.0")


class WeightSurvey:
    """Counts magnitudes in one pass over `weights`, name → tensor of any floating dtype; nothing is copied whole."""

    @torch.no_grad()
    def __init__(self, weights: Mapping[str, torch.Tensor]):
        self.weights = len(weights)
        self.elements = sum(weight.numel() for weight in weights.values())
        counts = torch.zeros(len(THETAS) + 1, dtype=torch.int64)
        squares = torch.zeros(len(THETAS) + 1, dtype=torch.float64)
        for weight in weights.values():
            for chunk in weight.reshape(-1).split(_CHUNK):
                size = where_float64_is(chunk.float().abs())
                bounds = torch.tensor(THETAS, dtype=torch.float32, device=size.device)
                place = torch.bucketize(size, bounds, right=True, out_int32=True)
                counts += torch.bincount(place, minlength=len(counts)).cpu()
                squares += torch.bincount(place, weights=size.double().square(), minlength=len(counts)).cpu()
        self._below = counts.cumsum(0).tolist()
        self._squares_below = squares.cumsum(0).tolist()

    def rows(self) -> list[ThetaRow]:
        """A row for each θ that selects something but not everything."""
        all_squares = self._squares_below[-1]
        return [
            self._row(theta, count, (squares / all_squares) ** 0.5 if all_squares else 0.0)
            for theta, count, squares in zip(THETAS, self._below, self._squares_below)
            if 0 < count < self.elements
        ]

    def _row(self, theta: float, count: int, zeroed: float) -> ThetaRow:
        density = count / self.elements
        size = file_size(count, density, self.weights)
        return ThetaRow(theta, count, density, size, count * TRAINING_BYTES, zeroed)

    def text(self, predictions: Mapping[float, float] | None = None) -> str:
        """A table for people; `predictions`: θ → relative change of what the model predicts, if that was measured."""
        predictions = predictions or {}
        title = f"{'θ':>8} {'elements':>15} {'density':>9} {'file':>10} {'training':>10} {'zeroed':>8}"
        lines = [
            f"{self.elements:,} elements in {self.weights} Linear and Conv weights. All with |w| < θ:",
            title + ("   prediction" if predictions else ""),
        ]
        for row in self.rows():
            if row.is_round:
                change = f"   {predictions[row.theta]:10.3%}" if row.theta in predictions else ""
                lines.append(
                    f"{row.theta:8g} {row.elements:15,} {row.density:9.3%} {_megabytes(row.file_bytes)} "
                    f"{_megabytes(row.training_bytes)} {row.zeroed:8.3%}{change}"
                )
        lines.append("file: with fp32 values. training: beside the model, with AdamW. zeroed: the norm of these")
        lines.append("elements relative to that of all: what the weights change by if all of these are set to zero.")
        if predictions:
            lines.append("prediction: what the model's output then changes by, on the latent and prompt connected.")
        return "\n".join(lines)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:7.1f} MB" if size < 1e9 else f"{size / 1e9:7.2f} GB"
