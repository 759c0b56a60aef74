"""Sheets where Pillow is older than 10.1, as in some WebUIs: its font has one size and takes no anchors."""

import pytest
from PIL import ImageFont

from sara_core.charts import drawing


@pytest.fixture(params=[False, True], ids=["any size", "one size"])
def sheet(request, monkeypatch):
    drawing._font.cache_clear()
    if request.param:
        monkeypatch.setattr(ImageFont, "load_default", ImageFont.load_default_imagefont)
    yield drawing.Sheet(200, 40)
    drawing._font.cache_clear()


@pytest.mark.parametrize("anchor, left, right", [("lm", 100, 200), ("rm", 0, 100), ("mm", 50, 150)])
def test_a_text_is_beside_its_place(sheet, anchor, left, right):
    sheet.text(100, 20, "twelve signs", 14, anchor)
    x0, y0, x1, y1 = sheet.picture.convert("L").point(lambda grey: 255 - grey).getbbox()
    assert left <= x0 + 2 and x1 <= right + 2 and x1 - x0 > 40
    assert 8 <= y0 < 20 < y1 <= 32


def test_any_letters_are_drawn_as_something(sheet):
    sheet.text(10, 20, "猫 θ")
    assert sheet.picture.convert("L").getextrema()[0] < 128
