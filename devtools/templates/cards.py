"""Pictures on the cards of the example workflows: what each does, told with the demo's drawings."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from demo import digits
from demo.make_style import draw_styled

SIZE = (800, 600)
GROUND, INK, ACCENT = "#20242c", "#f2efe8", "#ffb52e"
GAP = 14

Pictures = list[Image.Image]


def train_a_style() -> Image.Image:
    """Pictures in a style, and what a model draws after them."""
    ink = _ink(range(9))
    return _card(
        [(_grid(_pictures(draw_styled(ink)), 3), "your pictures"), (_big(draw_styled(_ink([9]))), "its style")], "→"
    )


def learn_a_subject() -> Image.Image:
    """One subject many times, among others of its kind."""
    same = _pictures(draw_styled(_ink([3, 3, 3, 3], start=0)))
    others = _pictures(digits.paint(_ink([1, 2, 4, 5, 6, 7, 8, 9, 0])))
    return _card([(_grid(same, 2), "your subject"), (_grid(others, 3), "others of its kind")], "≠")


def use_a_delta() -> Image.Image:
    """The same picture without and with a delta."""
    ink = _ink([5])
    return _card([(_big(digits.paint(ink)), "without"), (_big(draw_styled(ink)), "with the delta")], "→")


def compare_strengths() -> Image.Image:
    """One picture with more and more of a delta."""
    ink = _ink([7])
    plain, styled = digits.paint(ink), draw_styled(ink)
    mixed = [(_big(plain + (styled - plain) * part), str(strength)) for strength, part in ((0, 0), (0.5, 0.5), (1, 1))]
    return _card(mixed, "→→")


def bake_a_delta() -> Image.Image:
    """Model and delta as one file."""
    ink = _ink([8])
    both = [(_big(digits.paint(ink)), "model"), (_big(_changes(ink)), "delta"), (_big(draw_styled(ink)), "new model")]
    return _card(both, "+=")


def merge_two_styles() -> Image.Image:
    """Two styles, and both at once."""
    ink = _ink([2])
    sea = digits.paint(ink, (0.02, 0.15, 0.45), (0.55, 0.85, 0.95), (0.9, 1.0, 1.0))
    return _card(
        [(_big(draw_styled(ink)), "one"), (_big(sea), "other"), (_big((draw_styled(ink) + sea) / 2), "both")], "+="
    )


def inspect_and_extract() -> Image.Image:
    """Where two models differ."""
    ink = _ink([6])
    return _card(
        [(_big(digits.paint(ink)), "base"), (_big(draw_styled(ink)), "tuned"), (_big(_changes(ink)), "delta")], "–="
    )


def convert_a_lora() -> Image.Image:
    """Thin factors on one side, single points on the other."""
    return _card([(_factors(), "LoRA"), (_big(_changes(_ink([0]))), "SaRA delta")], "⇄")


CARDS: dict[str, Callable[[], Image.Image]] = {
    "Train a style, like LoRA training": train_a_style,
    "Learn a subject, like LoRA training": learn_a_subject,
    "Use a delta": use_a_delta,
    "Compare strengths": compare_strengths,
    "Bake a delta": bake_a_delta,
    "Merge two styles": merge_two_styles,
    "Inspect and extract": inspect_and_extract,
    "Convert a LoRA": convert_a_lora,
}


def _ink(wanted: Sequence[int], start: int = 40) -> np.ndarray:
    """One drawing each of some digits, float32 [n, 64, 64]; of a digit that is wanted again, another one."""
    drawn = digits.load_split().test
    rest = list(range(start, len(drawn.labels)))
    chosen = []
    for digit in wanted:
        chosen.append(next(row for row in rest if drawn.labels[row] == digit))
        rest.remove(chosen[-1])
    return drawn.ink[chosen]


def _changes(ink: np.ndarray) -> np.ndarray:
    """A few single points where there is ink, on dark ground: [n, 64, 64, 3] in 0..1."""
    points = (np.random.default_rng(0).random(ink.shape) < 0.03 + 0.3 * ink)[..., None]
    return np.where(points, np.float32([1.0, 0.71, 0.18]), np.float32([0.08, 0.09, 0.12]))


def _factors() -> Image.Image:
    """A tall and a wide strip, as a LoRA's two matrices lie beside a weight."""
    picture = Image.new("RGB", (330, 330), "#14161c")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((24, 24, 70, 306), fill=ACCENT)
    draw.rectangle((90, 24, 306, 70), fill=ACCENT)
    draw.rectangle((90, 90, 306, 306), outline="#5b6472", width=3)
    return picture


def _pictures(pictures: np.ndarray) -> Pictures:
    return [Image.fromarray((picture * 255).round().astype(np.uint8)) for picture in pictures]


def _big(pictures: np.ndarray) -> Image.Image:
    (picture,) = _pictures(pictures)
    return picture.resize((330, 330), Image.Resampling.BICUBIC)


def _grid(pictures: Pictures, columns: int) -> Image.Image:
    side = (330 - GAP * (columns - 1)) // columns
    grid = Image.new("RGB", (330, 330), GROUND)
    for number, picture in enumerate(pictures):
        place = [(side + GAP) * part for part in (number % columns, number // columns)]
        grid.paste(picture.resize((side, side), Image.Resampling.BICUBIC), place)
    return grid


def _card(parts: Sequence[tuple[Image.Image, str]], signs: str) -> Image.Image:
    """Pictures with their names, a sign between each two of them."""
    card = Image.new("RGB", SIZE, GROUND)
    draw = ImageDraw.Draw(card)
    sign_width = 72
    side = min(330, (SIZE[0] - 40 - sign_width * (len(parts) - 1)) // len(parts))
    left = (SIZE[0] - side * len(parts) - sign_width * (len(parts) - 1)) // 2
    top = (SIZE[1] - side) // 2 - 20
    for number, (picture, name) in enumerate(parts):
        x = left + number * (side + sign_width)
        card.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x, top))
        draw.text((x + side // 2, top + side + 40), name, INK, ImageFont.load_default(size=34), anchor="mm")
        if number:
            middle = (x - sign_width // 2, top + side // 2)
            _sign(draw, middle, signs[number - 1])
    return card


def _sign(draw: ImageDraw.ImageDraw, middle: tuple[int, int], sign: str) -> None:
    """+, –, =, ≠, → or ⇄, of strokes: fonts without them draw boxes."""
    x, y = middle

    def stroke(*points: tuple[int, int]) -> None:
        draw.line([(x + dx, y + dy) for dx, dy in points], ACCENT, 7, joint="curve")

    if sign in "+–":
        stroke((-20, 0), (20, 0))
    if sign == "+":
        stroke((0, -20), (0, 20))
    if sign in "=≠":
        stroke((-20, -9), (20, -9))
        stroke((-20, 9), (20, 9))
    if sign == "≠":
        stroke((-12, 24), (12, -24))
    if sign == "→":
        stroke((-24, 0), (22, 0))
        stroke((8, -15), (24, 0), (8, 15))
    if sign == "⇄":
        stroke((-22, -12), (22, -12))
        stroke((10, -24), (23, -12), (10, 0))
        stroke((-22, 14), (22, 14))
        stroke((-10, 2), (-23, 14), (-10, 26))
