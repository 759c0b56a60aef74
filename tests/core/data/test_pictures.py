"""Picture files of every kind are opened, turned and named; what is no picture is named, too."""

import io
import struct

import pytest
from PIL import Image, features

from sara_core.data import pictures
from sara_core.data.pictures import (
    EXIF, FRAMES, picture_size, read_picture, readable_endings, scaled, thumbnail,
)  # fmt: skip
from sara_core.errors import TrainingError
from tests.support.picture_files import GREEN, RED, SIDE, WHITE, assert_near, saved, seen

# --- turned


WITH_EXIF = [("jpg", {"quality": 100, "subsampling": 0}), ("png", {}), ("webp", {"lossless": True})]


@pytest.mark.parametrize("ending, options", [*WITH_EXIF, ("tif", {})])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_data_say(tmp_path, ending, options, orientation):
    upright = Image.new("RGB", (24, 16), WHITE)
    upright.paste(RED, (0, 0, 8, 8))
    upright.paste((0, 0, 255), (16, 0, 24, 8))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose: how each is stored
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{ending}", stored, exif=exif, **options)
    image = read_picture(path).image
    assert image.size == picture_size(path) == (24, 16)
    assert_near(image.getpixel((3, 3)), RED, 6)
    assert_near(image.getpixel((20, 3)), (0, 0, 255), 6)
    assert_near(image.getpixel((20, 12)), WHITE, 6)


@pytest.mark.parametrize("ending, exif", [
    ("png", b"Exif\0\0XX"), ("png", b"hello"), ("webp", b"Exif\0\0II+\0\x08\0\0\0"),
])  # fmt: skip
def test_damaged_exif_data_are_said_and_lose_no_picture(tmp_path, ending, exif):
    path = saved(tmp_path / f"a.{ending}", Image.new("RGB", (SIDE, SIDE), RED), exif=exif)
    found = read_picture(path)
    assert_near(found.image.getpixel((8, 8)), RED)
    assert found.remarks == (EXIF,) and picture_size(path) == (SIDE, SIDE)


def test_exif_data_of_which_nothing_is_legible_lose_no_jpeg(tmp_path):
    """Of which Pillow says nothing."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12"
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (SIDE, SIDE), RED), exif=exif)
    assert_near(seen(path), RED)
    assert picture_size(path) == (SIDE, SIDE)


@pytest.mark.parametrize("ending, options", WITH_EXIF)
def test_a_picture_is_turned_though_another_of_its_exif_data_makes_no_sense(tmp_path, ending, options):
    """A maker's name that is a number, which nothing can write anew."""
    maker_and_turned = struct.pack(">HHIIHHIHHI", 0x010F, 12, 1, 38, 0x0112, 3, 1, 6, 0, 0) + bytes(8)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + maker_and_turned
    path = saved(tmp_path / f"a.{ending}", Image.new("RGB", (24, 16), RED), exif=exif, **options)
    found = read_picture(path)
    assert found.image.size == picture_size(path) == (16, 24) and found.remarks == ()


# --- small, and in part


def test_a_thumbnail_is_the_picture_as_it_is_seen_in_small(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGBA", (64, 32), (0, 0, 0, 0))
    picture.paste(RED, (0, 0, 32, 32))
    small = Image.open(io.BytesIO(thumbnail(saved(tmp_path / "a.png", picture, exif=exif), 16)))
    assert (small.format, small.size) == ("JPEG", (8, 16))
    assert_near(small.getpixel((4, 3)), RED, 6)
    assert_near(small.getpixel((4, 13)), WHITE, 6)


def test_a_part_is_scaled_to_the_size_that_is_asked_for():
    picture = Image.new("RGB", (SIDE, SIDE), WHITE)
    picture.paste(RED, (4, 0, 8, SIDE))
    part = scaled(picture, (32, 64), (4, 0, 12, SIDE))
    assert part.size == (32, 64)
    assert part.getpixel((4, 32)) == RED and part.getpixel((27, 32)) == WHITE


# --- frames, formats, and what is none


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif", "mpo"])
def test_of_several_frames_or_pages_the_first_is_taken_and_said(tmp_path, ending):
    first, second = (Image.new("RGB", (SIDE, SIDE), colour) for colour in (GREEN, RED))
    path = saved(tmp_path / f"a.{ending}", first, save_all=True, append_images=[second])
    found = read_picture(path)
    assert_near(found.image.getpixel((8, 8)), GREEN, 3)
    assert found.remarks == (FRAMES,)


WRITTEN = {
    "JPEG": "jpg jpeg jpe jfif", "PNG": "png apng", "TIFF": "tif tiff", "WEBP": "webp", "GIF": "gif", "BMP": "bmp dib",
    "PPM": "ppm pnm", "TGA": "tga", "JPEG2000": "jp2 j2k", "ICO": "ico", "PCX": "pcx", "QOI": "qoi", "SGI": "sgi",
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITTEN)
def test_all_that_pillow_opens_is_read(tmp_path, kind):
    for ending in WRITTEN[kind].split():
        assert f".{ending}" in readable_endings()
        file = io.BytesIO()
        Image.new("RGB", (SIDE, SIDE), RED).save(file, kind)
        path = tmp_path / f"a.{ending}"
        path.write_bytes(file.getvalue())
        assert_near(seen(path), RED, 4)


def test_what_needs_another_program_or_is_no_picture_is_not_offered():
    assert not readable_endings() & {".eps", ".ps", ".pdf", ".wmf", ".emf", ".h5", ".grib", ".mpg", ".txt", ".heic"}


def test_a_codec_that_pillow_lacks_is_not_offered(monkeypatch):
    check = features.check
    monkeypatch.setattr(features, "check", lambda name: name not in ("avif", "jpg_2000") and check(name))
    pictures._formats.cache_clear()
    assert not readable_endings() & {".avif", ".jp2"} and ".jpg" in readable_endings()
    monkeypatch.undo()
    pictures._formats.cache_clear()


NO_PICTURES = {
    "empty": b"", "a web page": b"<html>not found</html>", "a PNG's beginning": b"\x89PNG\r\n\x1a\n",
    "a JPEG's beginning": b"\xff\xd8\xff\xe0\x00\x10JFIF", "a GIF's beginning": b"GIF89a\x01\x00",
    "a program": b"MZ" + bytes(200), "EPS, which another program would draw": b"%!PS-Adobe-3.0 EPSF-3.0\n"
    b"%%BoundingBox: 0 0 10 10\n%%EndComments\n",
}  # fmt: skip


@pytest.mark.parametrize("what", NO_PICTURES)
def test_what_is_no_picture_is_named(tmp_path, what):
    (tmp_path / "a.png").write_bytes(NO_PICTURES[what])
    with pytest.raises(TrainingError, match="The image 'a.png' is damaged or no image"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "webp", "tif", "tga", "jp2"])
def test_a_picture_that_was_cut_short_is_named(tmp_path, ending):
    path = saved(tmp_path / f"a.{ending}", Image.effect_noise((64, 64), 50).convert("RGB"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(TrainingError, match=f"'a.{ending}' is damaged or no image"):
        read_picture(path)


def test_a_picture_too_large_to_open_safely_is_named(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", Image.new("RGB", (64, 64), RED))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    assert seen(path) == RED  # between the limit and its double Pillow only warns
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(TrainingError, match="'a.png' has more than .* million pixels.*make it smaller"):
        read_picture(path)
