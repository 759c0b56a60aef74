"""What each θ offers, as a picture to choose it by."""

import math
from collections.abc import Mapping

from ..models.survey import ThetaRow, WeightSurvey
from .drawing import COLORS, LogChart, Sheet

WIDTH, HEIGHT, LEFT, TOP, CHART_HEIGHT = 900, 860, 90, 90, 290
# Below one in a hundred thousand nobody trains, and no change shows.
LOWEST = 1e-5


def theta_picture(survey: WeightSurvey, theta: float, predictions: Mapping[float, float]) -> Sheet:
    """Above: θ → share of the weights below it; below: what setting them to zero changes. `theta` is marked."""
    sheet, rows = Sheet(WIDTH, HEIGHT), [row for row in survey.rows() if row.density >= LOWEST]
    sheet.text(20, 28, f"{survey.elements:,} elements in {survey.weights} Linear and Conv weights", 18)
    if len(rows) < 2:
        sheet.text(20, 70, "There is no threshold that selects some of them but not all.")
        return sheet
    ends = rows[0].theta, rows[-1].theta
    box = (LEFT, TOP, WIDTH - LEFT - 40, CHART_HEIGHT)
    density = LogChart(sheet, box, ends, (LOWEST, 1.0))
    density.axes("share of the elements below each threshold")
    density.curve(((row.theta, row.density) for row in rows), COLORS[0])
    density.mark(theta, _at(rows, theta))

    box = (LEFT, TOP + CHART_HEIGHT + 90, WIDTH - LEFT - 40, CHART_HEIGHT)
    change = LogChart(sheet, box, ends, (LOWEST, max(1.0, *predictions.values(), 0.0)))
    change.axes("relative change if all of these are set to zero")
    change.curve(((row.theta, row.zeroed) for row in rows), COLORS[0])
    change.curve(sorted(predictions.items()), COLORS[5])
    change.mark(theta, f"{theta:g}")
    _key(sheet, LEFT, COLORS[0], "of the weights (Frobenius norm)")
    if predictions:
        _key(sheet, LEFT + 300, COLORS[5], "of the prediction, on the latent and prompt connected")
    return sheet


def _key(sheet: Sheet, x: int, color: str, text: str) -> None:
    y = HEIGHT - 34
    sheet.bar(x, y - 5, 10, 10, color)
    sheet.text(x + 18, y, text, 14, color=color)


def _at(rows: list[ThetaRow], theta: float) -> str:
    known = [row for row in rows if math.isclose(row.theta, theta)]
    return f"{theta:g}" + "".join(f": {row.elements:,} elements, {row.density:.2%}" for row in known)
