"""Curves of two parts of the claims, as a picture: what is lost by zeroing weights, and the style against the drift at
every strength.

    python -m benchmarks.claims_.curves LINES --picture FILE

LINES: of `python dev.py bench claims --part premise` and `--part strength`; without lines of a part its place stays
empty.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import lines


class Point(NamedTuple):
    """x, y; what the point is called, if anything"""

    x: float
    y: float
    name: str = ""


Curves = dict[str, list[Point]]


def premise(known: Sequence[dict]) -> Curves:
    """What was set to 0 → (share of the weights in percent, drift) of all layers, by rising share."""
    found: Curves = defaultdict(list)
    for line in known:
        if line.get("part") == "premise" and line["layers"] == "all":
            found[line["chosen"]].append(Point(100 * line["share"], line["drift"]))
    return {chosen: sorted(points) for chosen, points in found.items()}


def strength(known: Sequence[dict]) -> Curves:
    """Method → (drift, KID, strength) by rising strength from 0 on."""
    found: dict[str, list[tuple[float, Point]]] = defaultdict(list)
    for line in known:
        if line.get("part") == "strength" and line["strength"] >= 0:
            name = f"{line['strength']:g}"
            found[line["method"]].append((line["strength"], Point(line["drift"], line["kid"], name)))
    return {method: [point for _, point in sorted(points)] for method, points in found.items()}


def draw(figure, known: Sequence[dict]) -> None:
    """Both on a matplotlib figure."""
    left, right = figure.subplots(1, 2)
    for chosen, points in premise(known).items():
        left.plot([p.x for p in points], [p.y for p in points], marker="o", label=chosen)
    left.set(xscale="log", xlabel="weights set to 0, % of all", ylabel="drift (0: the base's own pictures)",
             title="What zeroing weights does")  # fmt: skip
    for method, points in strength(known).items():
        right.plot([p.x for p in points], [p.y for p in points], marker="o", label=method)
        for point in points:
            right.annotate(point.name, (point.x, point.y), xytext=(5, 4), textcoords="offset points", fontsize=8)
    right.set(xlabel="drift without the trigger (lower keeps more)", ylabel="KID (lower is nearer to the style)",
              title="One training of each at strengths from 0 to 2")  # fmt: skip
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()


def main() -> None:
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", type=Path)
    parser.add_argument("--picture", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    draw(figure, lines.read(arguments.lines))
    figure.savefig(arguments.picture, dpi=110)


if __name__ == "__main__":
    main()
