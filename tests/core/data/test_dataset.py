"""Several folders of pictures as one set: repeats, mirrored pictures, cuts, and what is said of them."""

import pytest
import torch
from PIL import Image

from sara_core.data.captioning import Captioning
from sara_core.data.dataset import Share, read_folders, read_pictures
from sara_core.data.image_folder import CaptionedImage, read_image_folder
from sara_core.errors import TrainingError
from tests.support.picture_files import BLUE, RED, saved


def folder(path, **pictures):
    """Name → the caption of a picture of that name, None without one."""
    path.mkdir()
    for name, caption in pictures.items():
        saved(path / f"{name}.png", Image.new("RGB", (64, 64), RED))
        if caption is not None:
            (path / f"{name}.txt").write_text(caption)
    return path


def test_each_folder_counts_as_often_as_it_is_told_and_mirrored_pictures_once_more(tmp_path):
    one, two = folder(tmp_path / "one", a="x", b=None), folder(tmp_path / "two", a="y")
    found = read_folders([Share(one, 2), Share(two)], Captioning("t", takes_any=True), mirrored_too=True)
    a, b, other = one / "a.png", one / "b.png", two / "a.png"
    of_one = [(a, "t, x", False), (b, "t", False), (a, "t, x", True), (b, "t", True)]
    assert found.images == [*of_one, *of_one, (other, "t, y", False), (other, "t, y", True)]
    assert found.text() == "3 images with a caption"


def test_what_is_left_over_is_said_of_all_folders(tmp_path):
    one, two = folder(tmp_path / "one", a="x", b=None), folder(tmp_path / "two", a="y", c=None)
    (two / "d.txt").write_text("z")
    found = read_folders([Share(one), Share(two)])
    assert found.without_caption == ["b.png", "c.png"] and found.without_image == ["d.txt"]


def test_mirrored_pictures_and_repeats_are_another_set(tmp_path):
    one = folder(tmp_path / "one", a="x", b="y")
    sets = [
        read_folders([Share(one)]), read_folders([Share(one)], mirrored_too=True), read_folders([Share(one, 2)]),
        read_folders([Share(one)], Captioning("t")),
    ]  # fmt: skip
    assert len({found.digest() for found in sets}) == 4
    assert sets[0].digest() == read_image_folder(one).digest()


def test_pixels_are_the_part_that_is_cut_mirrored_where_asked(tmp_path):
    picture = Image.new("RGB", (256, 128), RED)
    picture.paste(BLUE, (192, 0, 256, 128))
    path = saved(tmp_path / "a.png", picture)
    images = [CaptionedImage(path, ""), CaptionedImage(path, "", True), CaptionedImage(path, "")]
    first, mirrored, again = read_pictures(images, 64, buckets=False).pixels
    assert first.shape == (64, 64, 3) and first.dtype == torch.float32 and again is first
    assert torch.equal(mirrored, first.flip(1))
    assert first[0, 0].tolist() == [1, 0, 0]  # the middle 128 columns end where the blue begins
    whole = read_pictures(images[:1], 128, buckets=True).pixels[0]
    assert whole.shape == (128, 128, 3)  # 64 × 256 and 256 × 64 would lose as much
    wide = saved(tmp_path / "b.png", picture.resize((512, 128)))
    assert read_pictures([CaptionedImage(wide, "")], 128, buckets=True).pixels[0].shape == (64, 256, 3)


def test_what_is_seen_otherwise_is_said(tmp_path):
    saved(tmp_path / "a.png", Image.new("RGBA", (128, 128), (0, 0, 0, 0)))
    saved(tmp_path / "b.png", Image.new("RGB", (40, 40)))
    saved(tmp_path / "c.png", Image.new("RGB", (400, 100)))
    images = [CaptionedImage(tmp_path / name, "") for name in ("a.png", "b.png", "c.png")]
    sizes, tiny, transparent = read_pictures(images, 128, buckets=True).lines
    assert sizes == "2 of 128 × 128, 1 of 256 × 64"
    assert tiny.startswith("1 image smaller than trained on by far, and blurred so: b.png.")
    assert transparent == "1 image with transparent places, which become white: a.png"


def test_all_that_cannot_be_read_are_named_and_every_picture_is_counted(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"no picture")
    saved(tmp_path / "c.png", Image.new("RGB", (64, 64)))
    images, seen = [CaptionedImage(tmp_path / f"{name}.png", "") for name in "abca"], []
    with pytest.raises(TrainingError, match="2 images cannot be trained on.*'a.png'.*'b.png'"):
        read_pictures(images, 64, True, lambda *step: seen.append(step))
    assert seen == [(1, 3), (2, 3), (3, 3)]
