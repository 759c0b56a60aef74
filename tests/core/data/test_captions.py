"""A caption is text, or its file is named; and so is everything else in a folder that is not trained on."""

import pytest
from PIL import Image

from sara_core.data.captions import MOST_BYTES, read_caption
from sara_core.data.image_folder import read_image_folder
from sara_core.data.pictures import FRAMES, TRANSPARENT
from sara_core.errors import TrainingError

TEXTS = {
    "UTF-8 with a mark and Windows' lines": (b"\xef\xbb\xbfa cat,\r\non a mat\r\n", "a cat,\non a mat"),
    "an old Mac's lines": (b"a\rb", "a\nb"),
    "letters of every kind": ("größe 猫 🐱\tx".encode(), "größe 猫 🐱\tx"),
    "nothing": (b"", ""),
    "white space": (b" \n\t ", ""),
    "as long as a caption may be": (b"x" * MOST_BYTES, "x" * MOST_BYTES),
}
NO_TEXTS = {
    "UTF-16 with a mark": ("a cat".encode("utf-16"), "is UTF-16, not UTF-8 text: save it as UTF-8"),
    "UTF-16 the other way round": (b"\xfe\xff" + "a".encode("utf-16-be"), "is UTF-16"),
    "UTF-32 with a mark": ("a cat".encode("utf-32"), "is UTF-32"),
    "UTF-32 the other way round": (b"\0\0\xfe\xff" + "a".encode("utf-32-be"), "is UTF-32"),
    "UTF-16 without a mark": ("a cat".encode("utf-16-le"), "bytes that no text has .0x00.*UTF-16"),
    "UTF-16 the other way round, without a mark": ("a cat".encode("utf-16-be"), "bytes that no text has"),
    "UTF-32 without a mark": ("a cat".encode("utf-32-le"), "bytes that no text has"),
    "zeros after a crash": (bytes(40), "bytes that no text has"),
    "text with one zero": (b"a cat\0", "bytes that no text has"),
    "an escape sequence": (b"\x1b[31mred", "0x1b"),
    "Windows' Latin letters": ("größe".encode("cp1252"), "is not UTF-8 text: save it as UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0", "is not UTF-8 text"),
    "too long": (b"x" * (MOST_BYTES + 1), "is longer than 1.0 MB: that is no caption"),
}  # fmt: skip


@pytest.mark.parametrize("what", TEXTS)
def test_the_text_of_a_caption(tmp_path, what):
    content, text = TEXTS[what]
    (tmp_path / "a.txt").write_bytes(content)
    assert read_caption(tmp_path / "a.txt") == text


@pytest.mark.parametrize("what", NO_TEXTS)
def test_what_is_no_caption_is_named(tmp_path, what):
    content, words = NO_TEXTS[what]
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(TrainingError, match=f"'a.txt' .*{words}"):
        read_caption(tmp_path / "a.txt")


def folder(path, files):
    """A folder of files: None is a small picture, as PNG whatever the name says."""
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            Image.new("RGB", (8, 8)).save(path / name, "PNG")
        else:
            (path / name).write_bytes(content)
    return path


def test_all_captions_that_cannot_be_read_are_named_at_once(tmp_path):
    files = {"a.png": None, "a.txt": bytes(3), "b.png": None, "b.txt": b"\xff\xfe", "c.png": None, "c.txt": b"x"}
    with pytest.raises(TrainingError, match="2 captions cannot be read.*'a.txt'.*'b.txt'"):
        read_image_folder(folder(tmp_path, files))


LEFT_OVER = {
    "pictures of other programs": (
        {"b.heic": b"x", "c.JXL": b"x", "d.cr2": b"x"}, "3 files left out, of a kind that cannot be read here",
    ),
    "a film": ({"b.mp4": b"x"}, "1 file left out, of a kind that cannot be read here"),
    "kohya's captions": ({"b.png": None, "b.caption": b"x"}, "1 file not read, because captions are taken from .txt"),
    "captions in a table": ({"metadata.jsonl": b"{}"}, "taken from .txt files only: metadata.jsonl"),
    "a table for each": ({"a.json": b"{}"}, "taken from .txt files only: a.json"),
    "kohya's folders": ({"10_cat/b.png": None, "10_cat/b.txt": b"x"}, "1 folder with pictures not looked into"),
    "a caption for a picture's whole name": ({"b.png": None, "b.png.txt": b"x"}, "1 caption without an image: b.png.t"),
    "an empty caption": ({"b.png": None, "b.txt": b" \n"}, "1 caption without text: b.png"),
}  # fmt: skip


@pytest.mark.parametrize("what", LEFT_OVER)
def test_what_is_not_trained_on_is_counted(tmp_path, what):
    files, words = LEFT_OVER[what]
    assert words in read_image_folder(folder(tmp_path, {"a.png": None, "a.txt": b"x", **files})).text()


@pytest.mark.parametrize("what", [what for what in LEFT_OVER if what != "an empty caption"])
def test_a_folder_without_anything_to_train_on_says_why(tmp_path, what):
    files, words = LEFT_OVER[what]
    with pytest.raises(TrainingError, match="No image in .* (has a caption|can be read here)") as raised:
        read_image_folder(folder(tmp_path, files))
    assert words in str(raised.value)


def test_what_no_program_means_as_a_picture_or_caption_is_passed_over(tmp_path):
    files = {"a.png": None, "a.txt": b"x", "Thumbs.db": b"x", ".DS_Store": b"x", "._a.png": b"x", "a.npz": b"x"}
    assert read_image_folder(folder(tmp_path, files)).text() == "1 image with a caption"


@pytest.mark.parametrize("name", ["a.jfif", "a.tif", "a.tiff", "a.gif", "a.JPG", "a.jpe", "a.ppm", "a.webp", "a.tga"])
def test_every_kind_of_picture_counts(tmp_path, name):
    found = read_image_folder(folder(tmp_path, {name: None, "a.txt": b"x"}))
    assert [image.path.name for image in found.images] == [name]


def test_names_that_systems_write_in_two_ways_belong_together(tmp_path):
    found = read_image_folder(folder(tmp_path, {"\u00e4.png": None, "a\u0308.txt": b"x"}))
    assert [image.caption for image in found.images] == ["x"]


def test_two_captions_of_one_name_are_refused(tmp_path):
    files = folder(tmp_path, {"a.png": None, "a.txt": b"x", "a.TXT": b"y"})
    if len(list(files.glob("a.[tT]*"))) < 2:
        pytest.skip("this disk takes both names for one")
    with pytest.raises(TrainingError, match="'a.TXT' and 'a.txt' are captions of one name"):
        read_image_folder(files)


def test_all_images_that_cannot_be_read_are_named_before_the_training(tmp_path):
    files = {"a.png": b"", "a.txt": b"x", "b.jpg": b"<html>", "b.txt": b"x", "c.png": None, "c.txt": b"x"}
    found = read_image_folder(folder(tmp_path, files))
    with pytest.raises(TrainingError, match="2 images cannot be trained on.*'a.png' is damaged.*'b.jpg' is damaged"):
        found.checked()


def test_what_the_training_sees_otherwise_than_it_is_stored_is_said(tmp_path):
    files = folder(tmp_path, {f"{name}.txt": b"x" for name in "abc"})
    Image.new("RGBA", (8, 8)).save(files / "a.png")
    Image.new("RGB", (8, 8)).save(files / "b.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    Image.new("RGB", (8, 8)).save(files / "c.png")
    assert read_image_folder(files).checked().splitlines() == [
        f"1 image with {TRANSPARENT}: a.png", f"1 image with {FRAMES}: b.gif",
    ]  # fmt: skip
