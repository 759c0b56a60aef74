"""What the tab shows of a training: nothing of it is HTML but its own."""

import base64
import io
import math

import pytest
from PIL import Image

from sara_webui.tab.answers import reported
from sara_webui.tab.tools import Report
from sara_webui.tab.view import curve, progress_view, sentence
from sara_webui.training.progress import Progress
from sara_webui.training.settings import read_values


@pytest.fixture
def progress():
    return Progress("<b>style", read_values({"steps": 10}))


def test_everything_is_text(progress):
    progress.tell(message="<script>alert(1)</script>", warnings={"x": "<img src=x>"}, snapshot="<i>", phase="failed")
    shown = progress_view(progress)
    for text in ("<b>", "<script", "<img", "<i>"):
        assert text not in shown
    assert "class='error'" in shown and "under Resume" in shown


def test_how_to_go_on_is_said_once(progress):
    go_on = "To go on with it, choose 'style_step0000003' under Resume."
    for message, warning in ((f"Stopped after step 3. {go_on}", "x"), ("A bug", go_on), ("3 weights trained", "x")):
        progress.tell(phase="failed", message=message, warnings={"kept": warning}, snapshot="style_step0000003")
        assert progress_view(progress).count("under Resume") == 1


def test_the_curve_has_a_point_for_each_step_and_ends_at_the_last(progress):
    for step, loss in enumerate((1.0, math.nan, 0.5, 0.25), 1):
        progress.add_loss(step, loss)
    lines = [part.split("'")[0] for part in curve(progress.points(), progress.steps).split("points='")[1:]]
    assert [len(line.split()) for line in lines] == [3, 3]
    first, *_, last = (tuple(map(float, place.split(","))) for place in lines[0].split())
    assert first[0] < last[0] and first[1] < last[1], "a falling loss falls"
    heights = [float(point.split(",")[1]) for line in lines for point in line.split()]
    assert 16 < min(heights) and max(heights) < 200 - 8 - 12, "a figure would be written over the curve"
    assert curve([[1, 0.5]], 10) == "" and "nan" not in curve([[1, 0.5], [2, 0.5]], 10)


def test_where_it_is_fits_one_line(progress):
    progress.add_loss(3, 0.5)
    progress.tell(phase="training", step=3, seconds_per_step=0.25, seconds_left=61.0, memory=(1 << 30, 2 << 30))
    line = "step 3 of 10, loss 0.5000, 0.25 s per step, 1:01 left, 1.1 GB of memory, 2.1 GB at most"
    assert progress.line() == line


def test_a_report_is_shown_as_text_with_its_picture():
    shown = reported(lambda: Report("<b>a table", Image.new("RGB", (8, 4), "#0072b2")))()
    assert "&lt;b&gt;a table</pre>" in shown and " alt='" in shown
    encoded = shown.split("data:image/png;base64,")[1].split("'")[0]
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).getpixel((0, 0)) == (0, 0x72, 0xB2)
    assert "<img" not in reported(lambda: Report("a line"))()


def test_an_error_is_one_sentence_and_a_bug_is_none():
    from sara_core import DeltaError

    def failing():
        raise DeltaError("Choose <another>.")

    assert reported(failing)() == sentence("Choose <another>.", is_error=True)
    with pytest.raises(ZeroDivisionError):
        reported(lambda: 1 / 0)()
