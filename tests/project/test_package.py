"""The published package, made by the real packer, holds the pack and nothing else, and loads in the real host."""

import ast
import json
import re
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from devtools import packer as packing
from devtools.comfyui.server import Server
from devtools.prepared import HostError
from tests.support.published import PUBLISHED

ROOT = Path(__file__).resolve().parents[2]
# The folder into which ComfyUI Manager unpacks it: the name of the project.
INSTALLED_AS = "sara-sparse-delta"
PACKAGES = re.search(r"^packages = (\[.*?\])", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)[1]


@pytest.fixture(scope="module")
def packer():
    return packing.prepare_packer()


@pytest.fixture(scope="module")
def package(packer, tmp_path_factory):
    """This checkout's archive. Beside what git tracks, a file lay there that only this person has."""
    checkout = packing.copy_checkout(tmp_path_factory.mktemp("package") / "checkout")
    (checkout / "js" / "a person's own.md").touch()
    return packing.pack(packer, checkout)


def _top(name):
    return name.split("/")[0]


def _names(archive):
    with zipfile.ZipFile(archive) as file:
        return set(file.namelist())


def test_exactly_the_published_files_are_packed(package):
    expected = {name for name in packing.tracked_files() if _top(name) in PUBLISHED}
    assert {_top(name) for name in expected} == PUBLISHED
    assert _names(package) == expected


def test_what_is_left_out_at_the_top_is_kept_in_the_packs_own_folders(packer, tmp_path):
    """A line of .comfyignore without a leading slash matches in every folder: docs/ would drop js/docs/."""
    checkout = packing.copy_checkout(tmp_path)
    left_out = {_top(name) for name in packing.tracked_files()} - PUBLISHED
    folders = [name for name in sorted(PUBLISHED) if (ROOT / name).is_dir()]
    kept = {f"{folder}/{name}/kept/{name}" for folder in folders for name in left_out}
    for name in kept:
        (checkout / name).parent.mkdir(parents=True)
        (checkout / name).touch()
    packing.track_all(checkout)
    assert kept and kept <= _names(packing.pack(packer, checkout))


def test_the_packer_is_ended_when_it_reaches_for_the_network(packer, tmp_path):
    """A module of the standard library that, run as a program, asks a server."""
    done = packing.run_offline(packer, "xmlrpc.client", [], tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("It reached for the network: socket.")


def test_a_packer_that_fails_is_quoted(packer, tmp_path):
    with pytest.raises(HostError, match="No pyproject.toml file found"):
        packing.pack(packer, tmp_path)


def _get(server, path):
    """The bytes that the page gets from an address of the server."""
    with urllib.request.urlopen(server.client.address + urllib.parse.quote(path)) as response:
        return response.read()


def test_the_unpacked_package_is_the_whole_pack(package, host, server, tmp_path):
    """What the host gives of this checkout, it gives of the package too."""
    with zipfile.ZipFile(package) as archive:
        archive.extractall(tmp_path / "custom_nodes" / INSTALLED_AS)
    help_pages = sorted((ROOT / "js" / "docs").glob("*.md"))
    with Server(host, tmp_path, is_linked=False) as running:
        nodes = _nodes(running, INSTALLED_AS)
        assert nodes == _nodes(server, "comfyui-sara")
        assert sorted(nodes) == [page.stem for page in help_pages]
        for page in help_pages:
            assert _get(running, f"/extensions/{INSTALLED_AS}/docs/{page.name}") == page.read_bytes()
        for page in (ROOT / "js" / "docs").glob("*/*.md"):  # the whole ones in other languages
            name = page.relative_to(ROOT / "js" / "docs").as_posix()
            assert _get(running, f"/extensions/{INSTALLED_AS}/docs/{name}") == page.read_bytes()
        for file in (ROOT / "example_workflows").iterdir():
            assert _get(running, f"/api/workflow_templates/{INSTALLED_AS}/{file.name}") == file.read_bytes()
        translated = _get(running, "/i18n")
        assert translated == _get(server, "/i18n")
        assert nodes.keys() <= json.loads(translated)["zh"]["nodeDefs"].keys()


def _nodes(server, folder):
    """What a page shows of the nodes of the pack in ``custom_nodes/folder``, but for lists of files."""
    shown = ("input_order", "output", "output_name", "display_name", "description", "category")
    return {
        name: [node[key] for key in shown] for name, node in server.client.object_info().items()
        if node["python_module"] == f"custom_nodes.{folder}"
    }  # fmt: skip


def test_the_library_installs_every_module():
    """``pip install .`` takes what pyproject.toml names: packages one by one, and of each its Python files."""
    tracked = [PurePosixPath(name) for name in packing.tracked_files() if _top(name) == "sara_core"]
    assert {name.suffix for name in tracked} == {".py"}
    assert sorted(ast.literal_eval(PACKAGES)) == sorted({".".join(name.parent.parts) for name in tracked})
