"""Values that came one after the other in a run, as a picture of a few hundred points can show them."""

import math


class Curve:
    """Values at steps, in the order in which they came; what is no number has no point.

    points: [step, value] each
    """

    def __init__(self):
        self.points: list[list] = []

    def add(self, step: int, value: float) -> None:
        """Add the value of one step."""
        if math.isfinite(value):
            self.points.append([step, float(value)])

    def thinned(self, most: int) -> list[list]:
        """At most so many of the points, evenly: the first and the last one among them."""
        count = len(self.points)
        if count <= most:
            return list(self.points)
        return [self.points[round(number * (count - 1) / (most - 1))] for number in range(most)]
