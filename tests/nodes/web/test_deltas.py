"""What SaRA Loader's cards are told, in this process and by a real server; and what they may write."""

import base64
import io
import json
import os
import urllib.error
import urllib.parse
import urllib.request

import pytest
import torch
from PIL import Image


@pytest.fixture
def web(comfy):
    return comfy.pack_module("nodes.host.web.deltas")


@pytest.fixture
def place(comfy):
    folder = comfy.base / "models" / "sara" / "cards"
    folder.mkdir(exist_ok=True)
    yield folder
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()


def make(classes, path, **said):
    entry = classes.SparseEntry(torch.tensor([1, 5], dtype=torch.int32), torch.tensor([0.5, -0.25]), (2, 4))
    names = {"family": "sara.family", "thumbnail": "modelspec.thumbnail"}
    metadata = {names.get(key, f"modelspec.{key}"): text for key, text in said.items()}
    classes.SparseDelta({"diffusion_model.input_blocks.1.0.a.weight": entry}, metadata).save(path)


@pytest.fixture
def classes(comfy):
    return comfy.pack_module("sara_core.delta")


def picture(size=(300, 150), colour="red", kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def row(web, name):
    (found,) = (row for row in web._deltas.rows() if row["name"].replace("\\", "/") == f"cards/{name}")
    return found


def menu(name):
    return os.path.join("cards", name)


def test_a_row_says_what_the_file_says(web, place, classes):
    make(classes, place / "ink.safetensors", family="SD1.5", title="Ink [[x]]", trigger_phrase=" ink\n style ",
         author="A", license="CC0", description="notes")  # fmt: skip
    found = row(web, "ink.safetensors")
    status = (place / "ink.safetensors").stat()
    assert {key: found[key] for key in ("kind", "family", "layout", "trigger", "author", "licence", "error")} == {
        "kind": "saved", "family": "SD1.5", "layout": "SD1.5", "trigger": "ink style", "author": "A",
        "licence": "CC0", "error": None,
    }  # fmt: skip
    assert (found["size"], found["elements"], found["preview"]) == (status.st_size, 2, None)
    assert found["title"] == "Ink ⟦x⟧" and found["modified"] == pytest.approx(status.st_mtime)
    json.dumps(found)


def test_rows_are_newest_first_and_a_hostile_file_is_a_row_with_a_sentence(web, place, classes):
    make(classes, place / "old.safetensors")
    make(classes, place / "new.safetensors")
    (place / "odd.safetensors").write_bytes(b"\xff" * 64)
    for age, name in enumerate(("odd", "new", "old")):
        os.utime(place / f"{name}.safetensors", (1e9 - age, 1e9 - age))
    names = [row["name"] for row in web._deltas.rows() if row["name"].startswith("cards")]
    assert names == [menu("odd.safetensors"), menu("new.safetensors"), menu("old.safetensors")]
    assert "not a complete" in row(web, "odd.safetensors")["error"]["english"]


def test_no_tensor_is_read_and_a_file_is_opened_once_until_it_changes(web, place, classes, comfy, monkeypatch):
    """Of very many files: the list's work is one look at each header."""
    make(classes, place / "0.safetensors")
    for number in range(1, 300):
        os.link(place / "0.safetensors", place / f"{number}.safetensors")
    monkeypatch.setattr(web, "_deltas", type(web._deltas)())
    header, opened = comfy.pack_module("sara_core.files.header"), []
    monkeypatch.setattr(header, "open", lambda path, mode: opened.append(path) or open(path, mode), raising=False)
    monkeypatch.setattr(comfy.pack_module("sara_core.files.container"), "opened_copied", None)
    web._deltas.rows()
    assert len([path for path in opened if place in path.parents]) == 300
    opened.clear()
    web._deltas.rows()
    assert not opened
    # A file of its own, of another size.
    make(classes, place / "changed.safetensors", title="changed")
    os.replace(place / "changed.safetensors", place / "7.safetensors")
    assert row(web, "7.safetensors")["title"] == "changed" and len(opened) == 1


def test_a_link_out_of_the_folders_is_listed_and_not_looked_into(web, place, classes, tmp_path):
    make(classes, tmp_path / "secret.safetensors", title="secret")
    (place / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    found = row(web, "link.safetensors")
    assert found["title"] == "" and "outside of ComfyUI's folders" in found["error"]["english"]
    before = (tmp_path / "secret.safetensors").read_bytes()
    error = web.DeltaError
    asked = {"name": menu("link.safetensors"), "version": found["version"], "title": "x"}
    for ask in (web._write_about, web._preview):
        with pytest.raises(error, match="outside of ComfyUI's folders"):
            ask(asked)
    assert (tmp_path / "secret.safetensors").read_bytes() == before


def test_a_trigger_that_would_be_shown_reversed_is_not(web, place, classes):
    make(classes, place / "ink.safetensors", trigger_phrase="sks \u202egod")
    assert row(web, "ink.safetensors")["trigger"] == "sks \ufffdgod"


def test_the_info_has_settings_and_blocks(web, place, classes):
    make(classes, place / "ink.safetensors", family="SD1.5", description="some\nnotes", title="<b>Ink</b>")
    info = web._info(menu("ink.safetensors"))
    assert info["notes"] == "some\nnotes" and info["title"] == "<b>Ink</b>"
    assert ["family", "SD1.5"] in info["settings"] and not [one for one in info["settings"] if one[0] == "title"]
    assert info["blocks"] == [{"name": "input_blocks.1", "density": 0.25, "count": 2}]


def test_what_is_said_is_saved_unless_somebody_was_faster(web, place, classes):
    make(classes, place / "ink.safetensors", title="Ink")
    first = web._info(menu("ink.safetensors"))
    asked = {"name": first["name"], "version": first["version"], "title": "Wet ink", "licence": "MIT"}
    after = web._write_about({**asked, "sara.family": "Flux"})
    assert (after["title"], after["licence"], after["family"]) == ("Wet ink", "MIT", None)
    assert row(web, "ink.safetensors")["title"] == "Wet ink"
    with pytest.raises(web.DeltaError, match="changed since you opened it"):
        web._write_about(asked)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "cards/../cards/ink.safetensors", "", None, 5, []])
def test_only_names_of_the_menu_are_answered(web, place, classes, name):
    make(classes, place / "ink.safetensors")
    for ask in (web._info, lambda name: web._preview({"name": name}), lambda name: web._write_about({"name": name})):
        with pytest.raises(web.DeltaError, match="There is no file"):
            ask(name)
    assert web._family({"model": name}) == {"family": None, "layout": None}


def shown(response):
    assert response.content_type == "image/jpeg"
    return Image.open(io.BytesIO(response.body))


def not_shown(response):
    """Nothing is passed on, and nothing fails in the eyes of the page."""
    return (response.status, response.body) == (204, None)


def test_a_preview_is_made_small_from_the_metadata_or_from_a_picture_beside(web, place, classes):
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    make(classes, place / "ink.safetensors", thumbnail=url)
    within = row(web, "ink.safetensors")["preview"]
    image = shown(web._preview({"name": menu("ink.safetensors")}))
    assert image.size == (256, 128) and image.getpixel((9, 9))[0] > 200
    (place / "ink.preview.png").write_bytes(picture(colour="blue"))
    assert row(web, "ink.safetensors")["preview"] not in (within, None)
    assert shown(web._preview({"name": menu("ink.safetensors")})).getpixel((9, 9))[2] > 200


@pytest.mark.parametrize("content", [b"<svg onload='alert(1)'/>", picture()[:60], b""])
def test_what_is_no_sound_picture_is_not_passed_on(web, place, classes, content):
    make(classes, place / "ink.safetensors", thumbnail="data:text/html;base64," + base64.b64encode(content).decode())
    assert not_shown(web._preview({"name": menu("ink.safetensors")}))


def test_a_picture_beside_that_leads_out_is_not_read(web, place, classes, tmp_path):
    make(classes, place / "ink.safetensors")
    (tmp_path / "private.png").write_bytes(picture())
    (place / "ink.png").symlink_to(tmp_path / "private.png")
    assert not_shown(web._preview({"name": menu("ink.safetensors")}))


@pytest.fixture(scope="module")
def ask(server):
    def answer(path, sent=None, **headers):
        request = urllib.request.Request(server.client.address + path, headers=headers)
        if sent is not None:
            request.data = json.dumps(sent).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    return answer


def test_a_real_server_answers_of_its_own_deltas_alone(server, ask, checkpoint):
    from sara_core import SparseDelta, SparseEntry

    entry = SparseEntry(torch.tensor([1], dtype=torch.int32), torch.tensor([0.5]), (2, 4))
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    SparseDelta({"diffusion_model.out.2.weight": entry}, {"modelspec.thumbnail": url}).save(
        server.base / "models" / "sara" / "served.safetensors"
    )
    (server.base / "models" / "sara" / "hostile.safetensors").write_bytes(b"\x10" + b"\0" * 7 + b'{"a":[[[[[[[[[[[')
    status, content = ask("/sara/deltas")
    rows = {row["name"]: row for row in json.loads(content)["deltas"]}
    assert status == 200 and rows["hostile.safetensors"]["error"] and not rows["served.safetensors"]["error"]
    status, content = ask("/sara/delta/info?name=served.safetensors")
    assert status == 200 and json.loads(content)["blocks"]
    status, content = ask("/sara/delta/preview?name=served.safetensors")
    assert status == 200 and Image.open(io.BytesIO(content)).format == "JPEG"
    said = {"name": "served.safetensors", "version": rows["served.safetensors"]["version"], "title": "Served"}
    assert ask("/sara/delta/about", said, **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    status, content = ask("/sara/delta/about", said)
    assert status == 200 and json.loads(content)["title"] == "Served"
    for path in ("delta/info?name=..%2Fserved.safetensors", "delta/info", "delta/preview?name=%2Fetc%2Fpasswd"):
        status, content = ask(f"/sara/{path}")
        assert status == 400 and "There is no file" in json.loads(content)["error"]
    status, content = ask(f"/sara/family?model={urllib.parse.quote(checkpoint.name)}")
    assert (status, json.loads(content)) == (200, {"family": "SD1.5", "layout": "SD1.5"})
