"""A folder of pictures, file by file, good or bad."""

import os

import pytest
from PIL import Image

from sara_core.data.survey import copies, survey
from sara_core.errors import TrainingError
from tests.support.picture_files import RED, saved


@pytest.fixture
def seen(tmp_path):
    """Look at the folder: name → what is seen, and the lines."""

    def look(**options):
        found = survey(tmp_path, **{"resolution": 128, "buckets": True, **options})
        return {picture.name: picture for picture in found.pictures}, found.lines

    return look


def test_every_picture_has_its_caption_size_and_cut(tmp_path, seen):
    saved(tmp_path / "a.png", Image.new("RGB", (512, 128)))
    saved(tmp_path / "b.png", Image.new("RGB", (30, 20)))
    (tmp_path / "a.txt").write_text(" a cat \n")
    (tmp_path / "b.txt").write_text("")
    pictures, lines = seen()
    assert list(pictures) == ["a.png", "b.png"] and lines == []
    a, b = pictures.values()
    assert (a.caption, a.size, a.cut.size, a.cut.is_blurred) == ("a cat", (512, 128), (256, 64), False)
    assert (b.caption, b.size, b.cut.size, b.cut.is_blurred) == ("", (30, 20), (128, 128), True)
    assert seen(buckets=False)[0]["a.png"].cut.size == (128, 128)
    assert a.same_as is a.problem is None


def test_copies_are_those_of_the_same_bytes(tmp_path, seen):
    for name, colour in {"a": RED, "b": RED, "c": "#fe0000", "d": RED}.items():
        saved(tmp_path / f"{name}.bmp", Image.new("RGB", (8, 8), colour))
    assert [picture.same_as for picture in seen()[0].values()] == [None, "a.bmp", None, "a.bmp"]
    assert copies(sorted(tmp_path.iterdir())) == {"b.bmp": "a.bmp", "d.bmp": "a.bmp"}
    assert copies([tmp_path / "a.bmp", tmp_path / "d.bmp"]) == {"d.bmp": "a.bmp"}


def test_what_cannot_be_read_is_a_sentence_of_its_picture(tmp_path, seen):
    (tmp_path / "a.png").write_bytes(b"no picture")
    saved(tmp_path / "b.png", Image.new("RGB", (8, 8)))
    (tmp_path / "b.txt").write_bytes("a cat".encode("utf-16"))
    a, b = seen()[0].values()
    assert "'a.png' is damaged or no image" in a.problem and a.size is a.cut is None
    assert "'b.txt' is UTF-16" in b.caption_problem and b.size == (8, 8) and b.caption is b.problem is None


def test_a_picture_that_changes_is_looked_at_again(tmp_path, seen):
    for size in ((8, 8), (16, 8)):
        saved(tmp_path / "a.png", Image.new("RGB", size))
        os.utime(tmp_path / "a.png", ns=(size[0], size[0]))
        assert seen()[0]["a.png"].size == size


def test_other_files_are_said_and_captions_of_two_pictures(tmp_path, seen):
    for name in ("a.png", "a.jpg"):
        saved(tmp_path / name, Image.new("RGB", (8, 8)))
    for name in ("a.txt", "b.txt", "c.heic"):
        (tmp_path / name).write_text("x")
    lines = seen()[1]
    assert "'a.txt' could belong to 'a.jpg' or to 'a.png'" in lines[0]
    assert "1 file left out, of a kind that cannot be read" in lines[1] and "1 caption without an image" in lines[2]


def test_no_folder_and_no_resolution(tmp_path, seen):
    with pytest.raises(TrainingError, match="no folder"):
        survey(tmp_path / "other", 128, True)
    with pytest.raises(TrainingError, match="multiple of 64"):
        seen(resolution=100)
