"""Draws docs/images/architecture.svg: the packages of sara_core, and which may import which.

Levels and arrows come from the table that tests/project/test_layers.py holds the imports to; only the columns and the
words are said here. The file is text, the same on every machine.

    python -m devtools.architecture_picture
"""

import sys
from collections.abc import Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from tests.project.test_layers import EVERYWHERE, LAYERS

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "architecture.svg"


class Room(NamedTuple):
    """column: where the package stands, from the left; lines: what is in it"""

    column: int
    lines: tuple[str, str]


ROOMS = {
    "tensors": Room(0, ("single elements of a weight,", "the largest of a stream")),
    "names": Room(1, ("what weights are called", "by ComfyUI, diffusers, others")),
    "files": Room(2, ("bytes on disk,", "hostile until checked")),
    "delta": Room(1, ("SparseDelta, its file,", "what it says of itself")),
    "data": Room(5, ("what the next batch is:", "images, noise, levels")),
    "merging": Room(0, ("several deltas into one", "")),
    "charts": Room(0, ("what a delta or a merge is,", "and each θ, as pictures")),
    "report": Room(4, ("what a problem report says,", "without private names")),
    "models": Room(1, ("a whole model: its identity,", "comparison, bake")),
    "backward": Room(3, ("Δ, and the layers that give", "its gradient")),
    "extraction": Room(1, ("dense differences into a delta", "of the largest")),
    "diffusers_bridge": Room(2, ("deltas in diffusers pipelines", "")),
    "selection": Room(3, ("which parameters, which of", "their elements")),
    "memory": Room(4, ("what a training takes,", "before it begins")),
    "conversion": Room(1, ("other people's formats,", "in and out")),
    "training": Room(3, ("a run: optimizer, loop,", "adjustment, snapshots")),
    "pipelines": Room(4, ("training of diffusers folders", "without a host")),
}
# What imports the library and is imported by nothing of it.
FACES = (
    ("python -m sara_core", "commands/: the command line"),
    ("nodes/", "ComfyUI; nodes/host/ alone knows its insides"),
    ("import sara_core", "your own program or training loop"),
)

# In the picture's units. LANE: how far apart the arrows of neighbouring columns run.
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN, LANE = 190, 62, 20, 58, 24, 7
STYLE = """\
  text { font-family: sans-serif; fill: #1b2733; text-anchor: middle }
  .name { font-size: 15px; font-weight: bold }
  .about { font-size: 11.5px }
  .room { fill: #eaf2fb; stroke: #3b6ea5 }
  .everywhere { fill: #f3f3ee; stroke: #8a8a7a }
  .face { fill: #fdf1e0; stroke: #b9812f }
  .arrow { fill: none; stroke: #5a6b7d; stroke-width: 1.4; marker-end: url(#head) }"""


def levels(layers: Mapping[str, set[str]]) -> dict[str, int]:
    """Package → how many packages stand one above the other over it, at most."""
    found: dict[str, int] = {}
    for name in TopologicalSorter(layers).static_order():
        found[name] = 1 + max((found[other] for other in layers[name]), default=-1)
    return found


def nearest(layers: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Package → those it may import and that no other one of them may: the others are reached through these."""
    return {
        name: {other for other in allowed if not any(other in layers[between] for between in allowed)}
        for name, allowed in layers.items()
    }


def picture() -> str:
    """The whole SVG file. Raises KeyError for a package of the table that ROOMS does not know, and ValueError where
    two packages would stand in one place, or one in the way of an arrow."""
    layers = {name: allowed - EVERYWHERE for name, allowed in LAYERS.items() if name not in EVERYWHERE}
    level = levels(layers)
    place = {name: (ROOMS[name].column, level[name]) for name in sorted(layers)}
    if len(set(place.values())) < len(place):
        raise ValueError("Two packages stand in one place: give one of them another column in ROOMS.")
    columns, rows = 1 + max(column for column, _ in place.values()), 1 + max(level.values())
    width, faces_top = _left(columns) - GAP_X + MARGIN, _top(rows) - 20
    parts = [_bar("everywhere", MARGIN, width, "errors · wording", "every package may import these")]
    for name, targets in nearest(layers).items():
        parts += [_arrow(place[name], place[target], place) for target in sorted(targets)]
    for name, (column, row) in place.items():
        parts.append(_box("room", _left(column), _top(row), WIDTH, HEIGHT, name, ROOMS[name].lines))
    face_width = (width - 2 * MARGIN - (len(FACES) - 1) * GAP_X) // len(FACES)
    for number, (name, about) in enumerate(FACES):
        left = MARGIN + number * (face_width + GAP_X)
        parts.append(_box("face", left, faces_top, face_width, HEIGHT - 12, name, (about, "")))
    height = faces_top + HEIGHT - 12 + 34
    parts.append(
        f'<text class="about" x="{width // 2}" y="{height - 12}">An arrow: may import, and whatever that one may '
        "import. What is below may use everything above; nothing above knows what is below.</text>"
    )
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<title>The packages of sara_core and the direction of their imports</title>",
        f"<style>\n{STYLE}\n</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#5a6b7d"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *parts,
        "</svg>\n",
    ])  # fmt: skip


def _left(column: int) -> int:
    return MARGIN + column * (WIDTH + GAP_X)


def _top(row: int) -> int:
    return MARGIN + 46 + GAP_Y // 2 + row * (HEIGHT + GAP_Y)


def _arrow(start: tuple[int, int], end: tuple[int, int], place: Mapping[str, tuple[int, int]]) -> str:
    """From the upper edge of a room, along a lane above it, up the column of the other, to its lower edge."""
    (column, row), (to_column, to_row) = start, end
    if any(to_row < other_row < row for other_column, other_row in place.values() if other_column == to_column):
        raise ValueError(f"A package stands in the way from {start} to {end}: give it another column in ROOMS.")
    x, y = _left(column) + WIDTH // 2, _top(row)
    lane = y - GAP_Y // 2 + LANE * (column - 2)
    to_x, to_y = _left(to_column) + WIDTH // 2 + LANE * (column - to_column), _top(to_row) + HEIGHT
    return f'<path class="arrow" d="M{x} {y} V{lane} H{to_x} V{to_y}"/>'


def _box(kind: str, left: int, top: int, width: int, height: int, name: str, lines: tuple[str, str]) -> str:
    middle = left + width // 2
    shown = [f'<rect class="{kind}" x="{left}" y="{top}" width="{width}" height="{height}" rx="7"/>']
    shown.append(f'<text class="name" x="{middle}" y="{top + 21}">{escape(name)}</text>')
    for number, line in enumerate(filter(None, lines)):
        shown.append(f'<text class="about" x="{middle}" y="{top + 38 + 15 * number}">{escape(line)}</text>')
    return "\n".join(shown)


def _bar(kind: str, left: int, width: int, name: str, about: str) -> str:
    return _box(kind, left, MARGIN - 4, width - 2 * left, 46, name, (about, ""))


def main() -> int:
    PICTURE.write_text(picture(), encoding="utf-8", newline="\n")
    print(PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
