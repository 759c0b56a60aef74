"""Curves of two parts of the claims, as a picture: what is lost by zeroing weights, and the style and the names against
the drift at every strength.

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


def strength(known: Sequence[dict], figure: str) -> Curves:
    """Method → (drift, figure, strength) by rising strength from 0 on."""
    found: dict[str, list[tuple[float, Point]]] = defaultdict(list)
    for line in known:
        if line.get("part") == "strength" and line["strength"] >= 0:
            name = f"{line['strength']:g}"
            found[line["method"]].append((line["strength"], Point(line["drift"], line[figure], name)))
    return {method: [point for _, point in sorted(points)] for method, points in found.items()}


def draw(figure, known: Sequence[dict]) -> None:
    """All on a matplotlib figure."""
    left, *others = figure.subplots(1, 3)
    zeroed = premise(known)
    _plot(left, zeroed)
    shares = sorted({point.x for points in zeroed.values() for point in points})
    left.set_xscale("log")
    left.set_xticks(shares, [f"{share:g}" for share in shares])
    left.minorticks_off()
    left.set(xlabel="weights set to 0, % of all", ylabel="drift (0: the base's own pictures)",
             title="What zeroing weights does")  # fmt: skip
    labels = {"kid": "KID (lower is nearer to the style)", "text": "text (higher fits its name better)"}
    for axes, (name, label) in zip(others, labels.items()):
        _plot(axes, strength(known, name), first_below=name == "kid")
        axes.set(xlabel="drift without the trigger (lower keeps more)", ylabel=label, title="At strengths from 0 to 2")
    for axes in (left, *others):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()


def _plot(axes, curves: Curves, first_below: bool = True) -> None:
    """Names of points are below one curve and above the other, so that those of one strength do not meet."""
    below, above = {"xytext": (-5, -5), "ha": "right", "va": "top"}, {"xytext": (5, 4)}
    for number, (label, points) in enumerate(curves.items()):
        line = axes.plot([p.x for p in points], [p.y for p in points], marker="o", label=label)[0]
        side = below if (number % 2 == 0) == first_below else above
        for point in points:
            axes.annotate(point.name, point[:2], textcoords="offset points", fontsize=8, color=line.get_color(), **side)


def main() -> None:
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", type=Path)
    parser.add_argument("--picture", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    figure = Figure(figsize=(14, 4.4), layout="constrained")
    draw(figure, lines.read(arguments.lines))
    figure.savefig(arguments.picture, dpi=110)


if __name__ == "__main__":
    main()
