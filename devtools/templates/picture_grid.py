"""Pictures side by side in named rows and columns."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

CELL, GAP, LABEL_WIDTH, HEADER_HEIGHT = 96, 4, 190, 26


def picture_grid(rows: Mapping[str, Sequence[Image.Image]], columns: Sequence[str]) -> Image.Image:
    """One picture with a labelled row of pictures per entry of ``rows``; every row is as long as ``columns``."""
    pitch = CELL + GAP
    grid = Image.new("RGB", (LABEL_WIDTH + pitch * len(columns), HEADER_HEIGHT + pitch * len(rows)), "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(size=15)
    for column, title in enumerate(columns):
        position = (LABEL_WIDTH + pitch * column + CELL // 2, HEADER_HEIGHT // 2)
        draw.text(position, title, "black", font, anchor="mm")
    for row, (label, pictures) in enumerate(rows.items()):
        top = HEADER_HEIGHT + pitch * row
        draw.text((LABEL_WIDTH - 10, top + CELL // 2), label, "black", font, anchor="rm")
        for column, picture in zip(range(len(columns)), pictures, strict=True):
            cell = picture.convert("RGB").resize((CELL, CELL), Image.Resampling.BICUBIC)
            grid.paste(cell, (LABEL_WIDTH + pitch * column, top))
    return grid
