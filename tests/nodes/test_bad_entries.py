"""One bad entry in a folder that we list takes no node away, and fails no prompt that does not use it."""

import os
import shutil
from pathlib import Path

import pytest

from sara_core.data.image_folder import read_image_folder
from sara_core.errors import DeltaError, TrainingError
from sara_core.files.source import model_files
from tests.support.toy_training import train

needs_links = pytest.mark.skipif(os.name == "nt", reason="links and odd names need privileges on Windows")


def spoil(folder):
    """Fill a folder with what is no file, or cannot be looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("nowhere.safetensors", "run_00009_step0000001.safetensors"):
        (folder / name).symlink_to(folder / "gone")
    (folder / "circle.safetensors").symlink_to(folder / "circle.safetensors")
    (folder / "folder.safetensors").mkdir()
    os.mkfifo(folder / "pipe.safetensors")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.safetensors")).write_bytes(b"")
    for name in ("run_", "run_x", "run_²", "run_99999999999999999999999"):
        (folder / name).write_bytes(b"")


def resumable(comfy):
    return comfy.node_class("SaRATrain").INPUT_TYPES()["optional"]["resume"][1]["options"]


@needs_links
def test_in_the_folders_of_runs(comfy, model, data, untouched, output):
    for name in ("sara_snapshots", "sara_samples", "sara/unsaved"):
        spoil(output / name)
    sound = output / "sara_snapshots" / "run_00003_step0000001.safetensors"
    sound.write_bytes(b"")
    assert resumable(comfy) == ["none", "run 3, step 1"]
    delta, _ = train(comfy, model, data, steps=1)
    comfy.execute("SaRASave", delta=delta, filename_prefix="sara/a")
    for name in ("sara_snapshots", "sara_samples"):
        assert len(list((output / name).iterdir())) == 10 + 2 * (name == "sara_snapshots")  # the run's own, to train on


def test_a_snapshot_that_goes_while_the_folder_is_read(comfy, output, monkeypatch):
    folders = comfy.pack_module("nodes.host.folders")
    original = os.listdir
    monkeypatch.setattr(folders.os, "listdir", lambda folder: [*original(folder), "gone.safetensors"])
    (output / "sara_snapshots").mkdir()
    (output / "sara_snapshots" / "a.safetensors").write_bytes(b"")
    assert resumable(comfy) == ["none", "a.safetensors"]

    def unreadable(path, *, follow_symlinks=True):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(folders.Path, "stat", unreadable)
    assert resumable(comfy) == ["none"]


def test_a_folder_of_snapshots_that_is_none(comfy, model, data, untouched, output):
    for name in ("sara_snapshots", "sara_samples"):
        (output / name).write_bytes(b"")
    assert resumable(comfy) == ["none"]
    delta, _ = train(comfy, model, data, steps=1)
    assert delta.nnz


@pytest.fixture
def spoilt(comfy):
    """A folder of bad entries, and a sound pipeline, among the models; links in circles among the pipelines."""
    folders = [comfy.base / "models" / name / "spoilt" for name in ("sara", "loras", "checkpoints", "diffusers")]
    for folder in folders:
        spoil(folder)
    (folders[-1] / "sound").mkdir()
    (folders[-1] / "sound" / "model_index.json").write_text("{}")
    for name in ("round", "and round"):
        (folders[-1] / name).symlink_to(folders[-1])
    yield
    for folder in folders:
        shutil.rmtree(folder)


@needs_links
def test_in_the_folders_of_models(comfy, spoilt):
    for node_id in ("SaRALoader", "SaRABake", "SaRAConvert", "SaRAExtract", "SaRATrain"):
        comfy.node_class(node_id).INPUT_TYPES()
    names = comfy.pack_module("nodes.host.model_files").diffusers_names()
    assert [name for name in names if "spoilt" in name] == ["diffusers/spoilt/sound"]
    for name in ("spoilt/nowhere.safetensors", "spoilt/pipe.safetensors"):
        with pytest.raises(Exception, match="There is no file") as raised:
            comfy.execute("SaRAConvert", file_name=name)
        assert type(raised.value).__name__ == "DeltaError"


def test_a_host_that_fails_to_list_a_folder(comfy, monkeypatch, caplog):
    def gone(_):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(comfy.folder_paths, "get_filename_list", gone)
    for node_id in ("SaRALoader", "SaRABake", "SaRAConvert", "SaRAExtract", "SaRATrain"):
        comfy.node_class(node_id).INPUT_TYPES()
    assert "the files in the folders of 'checkpoints' cannot be listed" in caplog.text


def test_a_delta_that_goes_before_it_is_read(comfy, monkeypatch):
    folders = comfy.pack_module("nodes.host.folders")
    gone = comfy.base / "models" / "sara" / "gone.safetensors"
    monkeypatch.setattr(folders, "delta_path", lambda name: gone)
    with pytest.raises(Exception, match="does not exist") as raised:
        comfy.execute("SaRALoader", sara_name=gone.name)
    assert type(raised.value).__name__ == "DeltaError"


@needs_links
def test_in_a_folder_of_training_images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(name.encode())
        (tmp_path / f"{name}.txt").write_text(name)
    clean = read_image_folder(tmp_path)
    spoil(tmp_path)
    (tmp_path / "c.png").symlink_to("nowhere")
    (tmp_path / "d.txt").symlink_to("nowhere")
    (tmp_path / "e.png").mkdir()
    assert read_image_folder(tmp_path) == clean
    assert read_image_folder(tmp_path).digest() == clean.digest()


def test_training_images_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.txt").write_text("a")
    found = read_image_folder(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(TrainingError, match="'a.png' cannot be read"):
        found.digest()
    (tmp_path / "a.png").write_bytes(b"")

    def unreadable(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", unreadable)
    with pytest.raises(TrainingError, match="'a.txt' cannot be read.*permissions"):
        read_image_folder(tmp_path)
    monkeypatch.setattr(Path, "iterdir", unreadable)
    with pytest.raises(TrainingError, match="cannot be read"):
        read_image_folder(tmp_path)


def test_copies_beside_the_parts_of_a_model(tmp_path):
    parts = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    copies = ["diffusion_pytorch_model-00001-of-00002 copy.safetensors", "diffusion_pytorch_model-a-of-b.safetensors"]
    for name in parts + copies:
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in model_files(tmp_path)] == parts
    (tmp_path / parts[1]).unlink()
    with pytest.raises(DeltaError, match="in 2 files, of which 1"):
        model_files(tmp_path)
