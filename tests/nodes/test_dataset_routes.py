"""The addresses that the gallery of SaRA Dataset asks, in a real server: inside the input folder, and nowhere else."""

import io
import json
import urllib.error
import urllib.parse
import urllib.request

import pytest
from PIL import Image

from tests.support.picture_files import RED, assert_near, saved


@pytest.fixture
def ask(server):
    """GET with these values, or POST of `sent`: status and content, JSON where it is some."""

    def ask(path, sent=None, **values):
        address = f"{server.client.address}/sara/{path}?{urllib.parse.urlencode(values)}"
        data = None if sent is None else json.dumps(sent).encode()
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"} if data else {})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                content, status = answer.read(), answer.status
        except urllib.error.HTTPError as error:
            content, status = error.read(), error.code
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content

    return ask


@pytest.fixture
def cats(server):
    folder = server.input / "cats"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(folder / "a.jpg", Image.new("RGB", (256, 64), RED), exif=exif, quality=95)
    (folder / "a.txt").write_text("a cat", encoding="utf-8")
    saved(folder / "b.png", Image.new("RGBA", (8, 8), (0, 0, 0, 0)))
    return folder


def test_a_folder_is_listed_with_all_that_the_page_shows(ask, cats):
    (cats / "c.png").write_bytes(b"no picture")
    (cats / "d.png").write_bytes((cats / "b.png").read_bytes())
    status, found = ask("dataset", folder="cats", resolution=128, buckets="true")
    a, b, c, d = found["pictures"]
    assert status == 200 and found["lines"] == [] and found["more"] == 0 and ".jpg" in found["endings"]
    assert (a["name"], a["caption"], a["size"], a["bucket"], a["box"]) == (
        "a.jpg", "a cat", [64, 256], [64, 256], [0, 0, 1, 1],
    )  # fmt: skip
    assert (b["caption"], b["blurred"], b["same_as"], b["problem"]) == (None, True, None, None)
    assert "'c.png' is damaged or no image" in c["problem"]["english"] and c["box"] is None
    assert d["same_as"] == "b.png"
    square = ask("dataset", folder="cats", resolution=128, buckets="false")[1]["pictures"][0]
    assert square["bucket"] == [128, 128] and square["box"] == [0, 0.375, 1, 0.625]


def test_a_thumbnail_is_the_picture_as_it_is_seen(ask, cats):
    status, content = ask("dataset/thumbnail", folder="cats", name="a.jpg")
    image = Image.open(io.BytesIO(content))
    assert (status, image.format, image.size) == (200, "JPEG", (64, 256))
    assert_near(image.getpixel((32, 128)), RED, 8)
    saved(cats / "a.jpg", Image.new("RGB", (32, 32), RED))
    assert Image.open(io.BytesIO(ask("dataset/thumbnail", folder="cats", name="a.jpg")[1])).size == (32, 32)


def test_captions_are_written_whole_and_only_over_what_was_shown(ask, cats):
    text = "größe 猫\nnew line"
    assert ask("dataset/caption", {"folder": "cats", "name": "b.png", "caption": f" {text}\r\n", "before": None}) == (
        200, {"caption": text},
    )  # fmt: skip
    assert (cats / "b.txt").read_bytes().decode() == text
    sent = {"folder": "cats", "name": "a.jpg", "caption": "a dog", "before": "something else"}
    status, answer = ask("dataset/caption", sent)
    assert status == 400 and "'a.txt' has changed since it was shown" in answer["error"]
    assert (cats / "a.txt").read_text() == "a cat"
    assert ask("dataset/caption", {**sent, "before": "a cat"})[0] == 200
    assert (cats / "a.txt").read_text() == "a dog"
    assert sorted(path.name for path in cats.iterdir()) == ["a.jpg", "a.txt", "b.png", "b.txt"]


def test_an_empty_caption_makes_no_file(ask, cats):
    assert ask("dataset/caption", {"folder": "cats", "name": "b.png", "caption": " ", "before": None})[0] == 200
    assert not (cats / "b.txt").exists()


def test_a_caption_that_is_no_text_here_is_not_written_over(ask, cats):
    (cats / "a.txt").write_bytes("a cat".encode("utf-16"))
    status, answer = ask("dataset/caption", {"folder": "cats", "name": "a.jpg", "caption": "x", "before": None})
    assert status == 400 and "UTF-16" in answer["error"] and (cats / "a.txt").read_bytes()[:2] == b"\xff\xfe"


def test_a_caption_too_long_for_the_page_is_not_sent(ask, cats):
    (cats / "a.txt").write_text("x" * 20_001)
    seen = ask("dataset", folder="cats", resolution=64)[1]["pictures"][0]
    assert seen["caption"] is None and "longer than 20,000 letters" in seen["caption_problem"]["english"]
    status, _ = ask("dataset/caption", {"folder": "cats", "name": "a.jpg", "caption": "x", "before": None})
    assert status == 400 and len((cats / "a.txt").read_text()) == 20_001


def test_pictures_that_would_share_a_caption_are_told_apart_first(ask, cats):
    saved(cats / "b.jpg", Image.new("RGB", (8, 8)))
    status, answer = ask("dataset/caption", {"folder": "cats", "name": "b.png", "caption": "x", "before": None})
    assert status == 400 and "'b.png' and 'b.jpg' would share one caption file" in answer["error"]


def test_folders_are_listed_and_made(ask, cats, server):
    assert ask("dataset/folder", {"name": " new / Größe "}) == (200, {"folder": "new/Größe"})
    assert (server.input / "new" / "Größe").is_dir()
    assert {"cats", "new", "new/Größe"} <= set(ask("dataset/folders")[1]["folders"])
    names = ["", "/", ".", "..", "../x", "a/../../x", ".hidden", "a" * 300, "x\0y", "a/b/c/d/e/f/g", None, 3.5, ["x"]]
    for name in names:
        status, answer = ask("dataset/folder", {"name": name})
        assert status == 400 and sorted(answer) == ["error", "sentence"], name
    assert not (server.input.parent / "x").exists()


OUTSIDE = [
    "", ".", "..", "../", "../output", "cats/../..", "/", "/etc", "nowhere", "cats/a.jpg", "a\0b", "~", "link", "loop",
]  # fmt: skip


@pytest.mark.parametrize("folder", OUTSIDE)
def test_other_folders_get_a_sentence_and_nothing_else(ask, cats, server, tmp_path, folder):
    for name, target in {"link": tmp_path, "loop": server.input / "loop"}.items():
        (server.input / name).unlink(missing_ok=True)
        (server.input / name).symlink_to(target, target_is_directory=True)
    saved(tmp_path / "a.png", Image.new("RGB", (8, 8)))
    values = {"folder": folder, "name": "a.png"}
    answers = [
        ask("dataset", **values, resolution=64), ask("dataset/thumbnail", **values),
        ask("dataset/caption", {**values, "caption": "x", "before": None}),
    ]  # fmt: skip
    for status, answer in answers:
        expected = "the gallery has ComfyUI's input folder only" if folder.startswith("/") else "There is no folder"
        assert status == 400 and sorted(answer) == ["error", "sentence"] and expected in answer["error"]
        assert str(tmp_path) not in answer["error"]
    assert not (tmp_path / "a.txt").exists()
    for name in ("link", "loop"):
        (server.input / name).unlink()


@pytest.mark.parametrize("name", ["", "..", "../a.jpg", "a.txt", "nothing.png", "/etc/passwd", "a.jpg\0", "out.png"])
def test_other_files_get_a_sentence_and_nothing_else(ask, cats, tmp_path, name):
    saved(tmp_path / "out.png", Image.new("RGB", (8, 8)))
    (cats / "out.png").symlink_to(tmp_path / "out.png")
    values = {"folder": "cats", "name": name}
    before = sorted(cats.iterdir())
    for status, answer in (
        ask("dataset/thumbnail", **values), ask("dataset/caption", {**values, "caption": "x", "before": None}),
    ):  # fmt: skip
        assert status == 400 and "There is no picture" in answer["error"]
    assert sorted(cats.iterdir()) == before


def test_a_caption_that_is_a_link_out_of_the_folder_is_not_followed(ask, cats, tmp_path):
    (tmp_path / "b.txt").write_text("secret")
    (cats / "b.txt").symlink_to(tmp_path / "b.txt")
    status, answer = ask("dataset/caption", {"folder": "cats", "name": "b.png", "caption": "x", "before": "secret"})
    assert status == 400 and "link out of ComfyUI's input folder" in answer["error"]
    assert (tmp_path / "b.txt").read_text() == "secret"
    seen = ask("dataset", folder="cats", resolution=64)[1]["pictures"][1]
    assert seen["caption"] is None and "'b.txt' is a link to another place" in seen["caption_problem"]["english"]


@pytest.mark.parametrize("sent", [
    {"caption": "x" * 20_001}, {"caption": None}, {"caption": ["x"]}, {"caption": "x", "before": 1},
    {"caption": "\ud800"},
])  # fmt: skip
def test_captions_that_are_none_are_refused(ask, cats, sent):
    status, answer = ask("dataset/caption", {"folder": "cats", "name": "b.png", "before": None, **sent})
    assert status == 400 and "aption" in answer["error"] and not (cats / "b.txt").exists()


@pytest.mark.parametrize("resolution", ["", "x", "-64", "100", "9" * 20, "64.0"])
def test_a_resolution_that_is_none_is_said(ask, cats, resolution):
    status, answer = ask("dataset", folder="cats", resolution=resolution)
    assert status == 400 and "resolution" in answer["error"]
