"""Where in a model a delta's elements are, block by block, as a picture."""

from ..delta.describe import BlockDensity
from .drawing import COLORS, FAINT, Sheet

WIDTH, MARGIN, ROW, LABEL, BAR = 900, 20, 20, 210, 200


def density_picture(title: str, blocks: dict[str, BlockDensity]) -> Sheet:
    """For each block the share of its elements that change, and the root mean square of the changes."""
    sheet = Sheet(WIDTH, 90 + len(blocks) * ROW + MARGIN)
    sheet.text(MARGIN, 24, title, 18)
    left, second = MARGIN + LABEL, MARGIN + LABEL + BAR + 120
    sheet.text(left, 60, "density", 13)
    sheet.text(second, 60, "size of the changes (root mean square)", 13)
    densest = max((block.density for block in blocks.values()), default=0) or 1.0
    strongest = max((block.strength for block in blocks.values()), default=0) or 1.0
    for row, (name, block) in enumerate(blocks.items()):
        y = 72 + row * ROW
        sheet.text(left - 8, y + ROW // 2, name, 13, "rm")
        for x, value, most, text in (
            (left, block.density, densest, f"{block.density:.3%}"),
            (second, block.strength, strongest, f"{block.strength:.2e}"),
        ):
            sheet.bar(x, y + 2, BAR, ROW - 4, FAINT)
            sheet.bar(x, y + 2, value / most * BAR, ROW - 4, COLORS[0])
            sheet.text(x + BAR + 8, y + ROW // 2, text, 13)
    return sheet
