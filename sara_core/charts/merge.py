"""A merge as a picture: what each delta puts into it, how they overlap and oppose each other, block by block."""

from ..merging.report import MergeReport
from .drawing import COLORS, FAINT, PAPER, WARNING, Sheet

WIDTH, MARGIN, ROW, CELL = 900, 20, 20, 54
LABEL, BAR, CONFLICT = 210, 430, 150
# More would not be read, and a picture of a hundred by a hundred cells not be drawn in a blink.
MOST_CELLS = 12
NAME_LENGTH = 60


def merge_picture(report: MergeReport) -> Sheet:
    """Shares of the deltas, their overlaps (above the diagonal) and conflicts (below it), then the blocks."""
    deltas = len(report.names)
    cells = deltas if 1 < deltas <= MOST_CELLS else 0
    blocks = report.ordered_blocks()
    matrix_height = cells * CELL // 2 + 60 if cells else 0
    sheet = Sheet(WIDTH, 90 + deltas * ROW + matrix_height + len(blocks) * ROW + 60)
    sheet.text(MARGIN, 24, f"{report.method} of {deltas} deltas: {report.elements:,} elements", 18)
    y = _shares(sheet, report, 56)
    if cells:
        y = _matrix(sheet, report, y + 20)
    _blocks(sheet, report, blocks, y + 24)
    return sheet


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _shares(sheet: Sheet, report: MergeReport, y: int) -> int:
    for number, (name, weight, share) in enumerate(zip(report.names, report.weights, report.total.shares)):
        middle = y + ROW // 2
        sheet.text(MARGIN + 28, middle, str(number + 1), 14, "rm")
        sheet.bar(MARGIN + 36, y + 3, share * 200, ROW - 6, _color(number))
        sheet.text(MARGIN + 244, middle, f"{share:.1%}")
        sheet.text(MARGIN + 310, middle, f"x {weight:g}   {name[:NAME_LENGTH]}")
        y += ROW
    return y


def _matrix(sheet: Sheet, report: MergeReport, y: int) -> int:
    deltas, height = len(report.names), CELL // 2
    sheet.text(MARGIN, y, "Right of the diagonal: positions in common.  Left: opposite signs among these.", 13)
    y += 20
    for row in range(deltas):
        sheet.text(MARGIN + 28, y + height / 2, str(row + 1), 14, "rm")
        for column in range(deltas):
            x = MARGIN + 36 + column * CELL
            if row == column:
                sheet.bar(x, y, CELL - 2, height - 2, _color(row))
                continue
            overlaps = column > row
            share = report.overlap(row, column) if overlaps else report.conflict(row, column)
            sheet.bar(x, y, CELL - 2, height - 2, _blend(PAPER, COLORS[4] if overlaps else WARNING, share))
            sheet.text(x + CELL / 2 - 1, y + height / 2 - 1, f"{share:.0%}", 13, "mm")
        y += height
    return y


def _blocks(sheet: Sheet, report: MergeReport, blocks: list[str], y: int) -> None:
    left = MARGIN + LABEL
    sheet.text(left, y, "share of each delta", 13)
    sheet.text(left + BAR + 20, y, "opposite signs", 13)
    y += 14
    for name in blocks:
        block, x, middle = report.blocks[name], float(left), y + ROW // 2
        sheet.text(left - 8, middle, name, 13, "rm")
        for number, share in enumerate(block.shares):
            sheet.bar(x, y + 2, share * BAR, ROW - 4, _color(number))
            x += share * BAR
        conflict = block.conflicts / max(1, block.shared)
        sheet.bar(left + BAR + 20, y + 2, CONFLICT, ROW - 4, FAINT)
        sheet.bar(left + BAR + 20, y + 2, conflict * CONFLICT, ROW - 4, WARNING)
        sheet.text(left + BAR + CONFLICT + 28, middle, f"{conflict:.0%}", 13)
        y += ROW


def _blend(first: str, second: str, share: float) -> str:
    pairs = ((int(first[i : i + 2], 16), int(second[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)
