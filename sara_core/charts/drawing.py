"""A sheet of text, bars and curves, drawn with PIL, which every host has."""

import functools
import math
from collections.abc import Iterable, Sequence

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont

from ..foreign_text import plain

INK, FAINT, PAPER, WARNING = "#222222", "#d8d8d8", "#ffffff", "#c0392b"
# Share of a text that is left of its place, by the first letter of an anchor.
_BEFORE = {"l": 0.0, "m": 0.5, "r": 1.0}
# The eight colours of Okabe and Ito, which colour-blind people can tell apart, without black.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")


@functools.lru_cache
def _font(size: int):
    # PIL's own font: it is everywhere, but has no signs beyond Latin letters, so no theta and no multiplication sign.
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has it in a single size
        return ImageFont.load_default()


class Sheet:
    """A picture with a white ground; positions are pixels from the upper left corner."""

    def __init__(self, width: int, height: int):
        self.picture = Image.new("RGB", (width, height), PAPER)
        self._draw = ImageDraw.Draw(self.picture)

    def text(self, x: float, y: float, text: str, size: int = 14, anchor: str = "lm", color: str = INK) -> None:
        """text: anybody's; anchor: "lm", "mm", "rm": its left end, middle or right end at x, its line's middle at y."""
        text, font = plain(text), _font(size)
        if isinstance(font, ImageFont.ImageFont):  # of bitmaps, which takes no anchors and no other letters
            text = text.encode("latin-1", "replace").decode("latin-1")
            _, _, width, height = font.getbbox(text)
            x, y, anchor = x - width * _BEFORE[anchor[0]], y - height / 2, None
        self._draw.text((x, y), text, color, font, anchor=anchor)

    def bar(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """A filled rectangle; nothing where it is narrower than half a pixel."""
        if width >= 0.5 and height >= 0.5:
            self._draw.rectangle((round(x), round(y), round(x + width) - 1, round(y + height) - 1), fill=color)

    def line(self, points: Sequence[tuple[float, float]], color: str = INK, width: int = 1) -> None:
        """From point to point."""
        self._draw.line([(round(x), round(y)) for x, y in points], fill=color, width=width)

    def image(self) -> torch.Tensor:
        """As a batch of one: float32 [1, height, width, 3], 0 … 1."""
        return torch.from_numpy(numpy.asarray(self.picture).astype(numpy.float32) / 255)[None]


class LogChart:
    """Curves over two logarithmic axes with a line at each power of ten.

    x, y: (lowest, highest) value, both above 0
    """

    def __init__(self, sheet: Sheet, box: tuple[int, int, int, int], x: tuple[float, float], y: tuple[float, float]):
        self.sheet, self.box = sheet, box
        self.x, self.y = (tuple(map(math.log10, ends)) for ends in (x, y))

    def axes(self, title: str) -> None:
        """Grid, frame, title and the values at the powers of ten: of x as they are, of y as percentages."""
        left, top, width, height = self.box
        self.sheet.text(left, top - 14, title, 15)
        for power in _powers(self.x):
            x, _ = self._place(10.0**power, 10.0 ** self.y[0])
            self.sheet.line([(x, top), (x, top + height)], FAINT)
            self.sheet.text(x, top + height + 12, f"{10.0**power:g}", 12, "mm")
        for power in _powers(self.y):
            _, y = self._place(10.0 ** self.x[0], 10.0**power)
            self.sheet.line([(left, y), (left + width, y)], FAINT)
            self.sheet.text(left - 8, y, f"{10.0 ** (power + 2):g}%", 12, "rm")
        corners = [(left, top), (left + width, top), (left + width, top + height), (left, top + height), (left, top)]
        self.sheet.line(corners)

    def curve(self, points: Iterable[tuple[float, float]], color: str) -> None:
        """Points outside the axes are left out."""
        inside = [self._place(x, y) for x, y in points if self._within(x, self.x) and self._within(y, self.y)]
        if len(inside) > 1:
            self.sheet.line(inside, color, 3)
        for x, y in inside:
            self.sheet.bar(x - 3, y - 3, 6, 6, color)

    def mark(self, x: float, text: str, color: str = WARNING) -> None:
        """A vertical line at x, with a text at its lower end, on the side where there is more room."""
        left, top, width, height = self.box
        if self._within(x, self.x):
            place, _ = self._place(x, 10.0 ** self.y[0])
            self.sheet.line([(place, top), (place, top + height)], color, 2)
            beside, anchor = (place + 8, "lm") if place < left + width / 2 else (place - 8, "rm")
            self.sheet.text(beside, top + height - 14, text, 13, anchor, color)

    def _place(self, x: float, y: float) -> tuple[float, float]:
        left, top, width, height = self.box
        across = (math.log10(x) - self.x[0]) / (self.x[1] - self.x[0])
        up = (math.log10(y) - self.y[0]) / (self.y[1] - self.y[0])
        return left + across * width, top + (1 - up) * height

    @staticmethod
    def _within(value: float, ends: tuple[float, float]) -> bool:
        return value > 0 and ends[0] - 1e-9 <= math.log10(value) <= ends[1] + 1e-9


def _powers(ends: tuple[float, float]) -> range:
    return range(math.ceil(ends[0] - 1e-9), math.floor(ends[1] + 1e-9) + 1)


def stacked(sheets: Sequence[Sheet]) -> Sheet:
    """All sheets in one, one below the other."""
    whole = Sheet(max(s.picture.width for s in sheets), sum(s.picture.height for s in sheets))
    top = 0
    for sheet in sheets:
        whole.picture.paste(sheet.picture, (0, top))
        top += sheet.picture.height
    return whole
