"""Picture files for tests, and what the training sees of them."""

from PIL import Image

from sara_core.data.pictures import read_picture

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
SIDE = 16


def saved(path, image, **options):
    image.save(path, **options)
    return path


def seen(path, place=(8, 8)):
    """The colour of one pixel: in the middle, which is what each picture here is of."""
    return read_picture(path).image.getpixel(place)


def assert_near(colour, wanted, by=2):
    assert max(abs(a - b) for a, b in zip(colour, wanted, strict=True)) <= by, colour


def square(mode, inside, outside):
    """A square of one colour in the middle of another."""
    image = Image.new(mode, (SIDE, SIDE), outside)
    image.paste(inside, (4, 4, 12, 12))
    return image
