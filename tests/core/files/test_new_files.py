"""Files that must not take another's place: they get their names exclusively, whoever writes there meanwhile."""

import errno
import os
import threading

import pytest
import torch

from sara_core import SparseDelta, SparseEntry
from sara_core.conversion.write import write_delta
from sara_core.errors import DeltaError, NameTakenError
from sara_core.files import atomic, container
from sara_core.models.bake import bake

SHAPE = (8, 4)


def delta():
    entry = SparseEntry(torch.tensor([1, 5], dtype=torch.int32), torch.tensor([0.5, -1.0]), SHAPE)
    return SparseDelta({"diffusion_model.a.weight": entry})


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    with open(path, "wb") as file:
        container.write(file, {"model.diffusion_model.a.weight": torch.ones(SHAPE)}, {})
    return path


def writers(checkpoint):
    return {
        "save": lambda path: delta().save(path, overwrite=False),
        "bake": lambda path: bake(checkpoint, path, delta(), overwrite=False),
        "sara": lambda path: write_delta(delta(), path, "sara", overwrite=False),
        "diff": lambda path: write_delta(delta(), path, "diff", overwrite=False),
        "lora": lambda path: write_delta(delta(), path, "lora", overwrite=False),
        "shira": lambda path: write_delta(delta(), path.with_suffix(""), "shira", overwrite=False),
    }


WRITERS = ["save", "bake", "sara", "diff", "lora", "shira"]


@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_there_is_not_replaced(tmp_path, checkpoint, writer):
    folder = tmp_path / "out"
    folder.mkdir()
    taken = folder / ("x" if writer == "shira" else "x.safetensors")
    taken.write_bytes(b"mine")
    with pytest.raises(NameTakenError, match="nothing is overwritten"):
        writers(checkpoint)[writer](folder / "x.safetensors")
    assert taken.read_bytes() == b"mine" and list(folder.iterdir()) == [taken]


@pytest.mark.parametrize("writer", [writer for writer in WRITERS if writer != "shira"])
def test_what_appears_while_it_is_written_is_not_replaced(tmp_path, checkpoint, writer, monkeypatch):
    folder, fsync = tmp_path / "out", os.fsync
    folder.mkdir()
    path = folder / "x.safetensors"
    monkeypatch.setattr(atomic.os, "fsync", lambda descriptor: (path.write_bytes(b"mine"), fsync(descriptor)))
    with pytest.raises(NameTakenError, match="nothing is overwritten"):
        writers(checkpoint)[writer](path)
    assert path.read_bytes() == b"mine" and list(folder.iterdir()) == [path]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_free_name_is_taken(tmp_path, checkpoint, writer):
    path = tmp_path / "deep" / "x.safetensors"
    if writer != "shira":
        path.parent.mkdir()
    writers(checkpoint)[writer](path)
    assert [entry.name for entry in path.parent.iterdir()] == ["x" if writer == "shira" else "x.safetensors"]


def refuse_links(monkeypatch, error=errno.EPERM):
    def link(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(atomic.os, "link", link)


def test_without_hard_links_nothing_is_replaced_either(tmp_path, monkeypatch):
    """As on exFAT and some network shares."""
    refuse_links(monkeypatch)
    path, fsync = tmp_path / "x.safetensors", os.fsync
    delta().save(path, overwrite=False)
    assert SparseDelta.load(path).nnz == 2 and list(tmp_path.iterdir()) == [path]
    path.unlink()
    monkeypatch.setattr(atomic.os, "fsync", lambda descriptor: (path.write_bytes(b"mine"), fsync(descriptor)))
    with pytest.raises(NameTakenError):
        delta().save(path, overwrite=False)
    assert path.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [path]


def test_without_hard_links_a_failed_rename_leaves_no_empty_file(tmp_path, monkeypatch):
    def replace(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    refuse_links(monkeypatch)
    monkeypatch.setattr(atomic.os, "replace", replace)
    with pytest.raises(DeltaError, match="could not be saved"):
        delta().save(tmp_path / "x.safetensors", overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_being_written_is_taken_from_the_beginning(tmp_path):
    path = tmp_path / "x.safetensors"
    with atomic.creating(path) as file:
        with pytest.raises(NameTakenError, match="being written by another program"):
            delta().save(path, overwrite=False)
        file.write(b"first")
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_work_for_a_name_that_is_taken_is_not_even_begun(tmp_path):
    path = tmp_path / "x.safetensors"
    path.symlink_to("nowhere")
    with pytest.raises(NameTakenError), atomic.creating(path):
        pytest.fail("it was begun")
    assert list(tmp_path.iterdir()) == [path]


def test_whether_a_file_can_be_written_is_known_before_and_leaves_nothing(tmp_path):
    path = tmp_path / "x.safetensors"
    atomic.check_writable(path)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"mine")
    atomic.check_writable(path)
    assert path.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [path]
    refused = {
        tmp_path: "name of a folder", tmp_path / "no" / "x": "folder does not exist",
        path / "x": "is not a folder", tmp_path / ("x" * 250): "is too long: with what is added",
    }  # fmt: skip
    for place, message in refused.items():
        with pytest.raises(DeltaError, match=message):
            atomic.check_writable(place)
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_shira_export_leaves_no_folder(tmp_path, monkeypatch):
    original = container.write

    def full(file, *rest):
        original(file, *rest)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(container, "write", full)
    with pytest.raises(DeltaError, match="disk is full"):
        write_delta(delta(), tmp_path / "x", "shira")
    assert list(tmp_path.iterdir()) == []


def test_a_shira_folder_whose_parent_is_a_file_is_refused_not_tried_for_ever(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeltaError, match="cannot be made") as raised:
        write_delta(delta(), tmp_path / "file" / "x", "shira", overwrite=False)
    assert not isinstance(raised.value, NameTakenError)


def test_of_many_writers_of_one_name_exactly_one_gets_it(tmp_path):
    path, barrier, results = tmp_path / "x.safetensors", threading.Barrier(8), []

    def write(number):
        barrier.wait()
        try:
            with atomic.creating(path) as file:
                file.write(bytes([number]))
            results.append(number)
        except NameTakenError:
            pass

    for _ in range(20):
        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = results
        assert path.read_bytes() == bytes([winner]) and list(tmp_path.iterdir()) == [path]
        path.unlink()
        results.clear()
