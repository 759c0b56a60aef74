"""What identifies a folder of training images, so that a run goes on with those it began with only."""

import pytest

from sara_core.data.image_folder import read_image_folder

FILES = {"a.png": b"first", "a.txt": b"a red square", "b.png": b"second", "b.txt": b"a blue one"}
CHANGES = {
    "another picture": {"b.png": b"third"},
    "another caption": {"a.txt": b"a green square"},
    "pictures exchanged": {"a.png": b"second", "b.png": b"first"},
    "a picture more": {"c.png": b"third", "c.txt": b"a third"},
    "a byte moved to the next picture": {"a.png": b"firs", "b.png": b"tsecond"},
}


def digest(folder, files) -> str:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return read_image_folder(folder).digest()


def test_the_same_pictures_and_captions_in_another_folder_are_the_same(tmp_path):
    again = {**FILES, "a.txt": b"  a red square\n", "notes.md": b"no picture"}
    assert digest(tmp_path / "one", FILES) == digest(tmp_path / "two", again)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_pictures_or_captions_are_noticed(tmp_path, change):
    assert digest(tmp_path / "one", FILES) != digest(tmp_path / "two", {**FILES, **change})
