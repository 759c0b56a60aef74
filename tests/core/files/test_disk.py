"""What a disk has no room for is refused before the work, and a name that no file can have as well."""

import os
import shutil
import socket
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from sara_core import SparseDelta, SparseEntry
from sara_core.__main__ import main
from sara_core.conversion.write import write_delta
from sara_core.errors import DeltaError
from sara_core.files import atomic, container, disk, names
from sara_core.files.disk import check_room, free_bytes
from sara_core.models.bake import bake

SHAPE = (8, 4)


def delta():
    entry = SparseEntry(torch.tensor([1, 5], dtype=torch.int32), torch.tensor([0.5, -1.0]), SHAPE)
    return SparseDelta({"diffusion_model.a.weight": entry})


@pytest.fixture
def full(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=3))


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    with open(path, "wb") as file:
        container.write(file, {"model.diffusion_model.a.weight": torch.ones(SHAPE)}, {})
    return path


def test_how_much_is_free_is_asked_where_the_folder_will_be(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda place: asked.append(place) or SimpleNamespace(free=7))
    assert free_bytes(tmp_path / "not" / "there" / "x") == 7 and asked == [tmp_path]
    check_room(tmp_path / "x", 7, "It")
    with pytest.raises(DeltaError, match="^It takes .* are free. Free some space there or choose another folder.$"):
        check_room(tmp_path / "x", 8, "It")


def test_a_system_that_does_not_say_stops_nothing(tmp_path, monkeypatch):
    def unknown(place):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(shutil, "disk_usage", unknown)
    check_room(tmp_path / "x", 10**18, "It")


@pytest.mark.parametrize("write", [
    lambda path, base: delta().save(path), lambda path, base: bake(base, path, delta()),
    lambda path, base: write_delta(delta(), path, "diff"), lambda path, base: write_delta(delta(), path, "sara"),
    lambda path, base: write_delta(delta(), path, "lora"),
    lambda path, base: write_delta(delta(), path.with_suffix(""), "shira"),
], ids=["save", "bake", "diff", "sara", "lora", "shira"])  # fmt: skip
def test_a_file_without_room_is_not_begun(tmp_path, checkpoint, full, write):
    with pytest.raises(DeltaError, match="takes .* are free"):
        write(tmp_path / "x.safetensors", checkpoint)
    assert list(tmp_path.iterdir()) == [checkpoint]


def no_files(folder):
    """Paths of what is there and is no file."""
    (folder / "folder.safetensors").mkdir()
    (folder / "link.safetensors").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.safetensors")
    with socket.socket(socket.AF_UNIX) as one:
        before = os.getcwd()
        os.chdir(folder)  # such a path may only be short
        try:
            one.bind("socket.safetensors")
        finally:
            os.chdir(before)
    return [folder / f"{kind}.safetensors" for kind in ("folder", "link", "pipe", "socket")] + ["/dev/null"]


needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")


@needs_pipes
def test_nothing_but_a_file_is_replaced(tmp_path):
    for path in no_files(tmp_path):
        before = os.lstat(path)
        for attempt in (atomic.check_writable, lambda path: atomic.replacing(path).__enter__()):
            with pytest.raises(DeltaError, match="name of a folder|is no ordinary file .*, and is not replaced"):
                attempt(path)
        after = os.lstat(path)
        assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


def test_a_link_to_a_file_is_replaced_as_before(tmp_path):
    (tmp_path / "file.safetensors").write_bytes(b"mine")
    (tmp_path / "link.safetensors").symlink_to("file.safetensors")
    delta().save(tmp_path / "link.safetensors")
    assert SparseDelta.load(tmp_path / "link.safetensors").nnz == 2
    assert (tmp_path / "file.safetensors").read_bytes() == b"mine"


COMMANDS = {
    "merge": ["merge", "{out}", "{none}"], "extract": ["extract", "{none}", "{none}", "{out}"],
    "bake": ["bake", "{none}", "{out}", "{none}"], "convert": ["convert", "{none}", "{out}"],
    "convert to diff": ["convert", "{none}", "{out}", "--to", "diff"],
    "convert to shira": ["convert", "{none}", "{out}", "--to", "shira"],
    "train": ["train", "{none}", "{none}", "{out}"],
}  # fmt: skip


@needs_pipes
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_looks_at_out_before_anything_else(tmp_path, capsys, command):
    bad = [path for path in no_files(tmp_path) if command != "convert to shira" or not os.path.isdir(path)]
    bad += [tmp_path / ("x" * 300 + ".safetensors"), tmp_path / "a\nb.safetensors", tmp_path / ".hidden.safetensors",
            tmp_path / "\udc80.safetensors"]  # fmt: skip
    for out in bad:
        arguments = [part.format(out=out, none=tmp_path / "none.safetensors") for part in COMMANDS[command]]
        assert main(arguments) == 1
        said = capsys.readouterr().err
        reasons = "is no ordinary file", "is no folder", "The name '", "name of a folder"
        assert any(map(said.__contains__, reasons)) or ("must" in said and str(out) == "/dev/null"), said
        assert "none.safetensors" not in said


def test_an_ending_that_no_delta_may_have_is_refused_before_the_work(tmp_path, capsys):
    for command in ("merge", "extract", "convert"):
        arguments = [part.format(out=tmp_path / "x.pt", none=tmp_path / "none") for part in COMMANDS[command]]
        assert main(arguments) == 1
        assert "'x.pt': the file's name must end in .safetensors" in capsys.readouterr().err


def test_a_merge_without_room_is_refused_before_the_work(tmp_path, capsys, full, monkeypatch):
    monkeypatch.setattr("sara_core.commands.merge.merge_with_report", lambda *_: pytest.fail("it was begun"))
    with monkeypatch.context() as roomy:
        roomy.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10**9))
        delta().save(tmp_path / "a.safetensors")
    assert main(["merge", str(tmp_path / "x.safetensors"), str(tmp_path / "a.safetensors")]) == 1
    assert "The merged delta takes" in capsys.readouterr().err


@pytest.mark.parametrize("amount", [["--density", "0.5"], ["--count", "9"]])
def test_an_extraction_without_room_is_refused_before_the_models_are_compared(
    tmp_path, checkpoint, capsys, full, monkeypatch, amount
):
    monkeypatch.setattr("sara_core.commands.extract.extract_with_report", lambda *_, **__: pytest.fail("it was begun"))
    assert main(["extract", str(checkpoint), str(checkpoint), str(tmp_path / "x.safetensors"), *amount]) == 1
    assert "The delta takes" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["lora", "lora for diffusers", "shira"])
def test_what_is_asked_for_is_what_the_file_takes(tmp_path, monkeypatch, to):
    """Of changes that have the full rank, and are as many as fit: the room asked for is the tensors' size."""
    asked = []
    monkeypatch.setattr(disk, "check_room", lambda path, size, what: asked.append(size))
    entry = SparseEntry(torch.arange(32, dtype=torch.int32), torch.randn(32), SHAPE)
    small = SparseEntry(torch.arange(12, dtype=torch.int32), torch.randn(12), (3, 4))
    block = "diffusion_model.input_blocks.1.1.transformer_blocks.0."
    full_rank = SparseDelta({block + "attn2.to_q.weight": entry, block + "attn1.to_k.weight": small})
    if to == "shira":
        ones = entry._replace(indices=entry.indices[:12], values=entry.values[:12])
        full_rank = SparseDelta({block + "attn2.to_q.weight": ones})
    path = tmp_path / ("x" if to == "shira" else "x.safetensors")
    write_delta(full_rank, path, to.split()[0], rank=4, reader="diffusers" if "diffusers" in to else "comfyui")
    tensors = load_file(path / "adapter_model.safetensors" if to == "shira" else path)
    alphas = [tensor for name, tensor in tensors.items() if name.endswith(".alpha")]
    assert asked == [sum(tensor.nbytes for tensor in tensors.values()) - 4 * len(alphas)]


@pytest.mark.parametrize("name, words", [
    ("CON", "device"), ("nul.safetensors", "device"), ("lpt9.x", "device"), ("COM¹.safetensors", "device"),
    ("aux .x", "device"), ("a:b", "holds :"), ('a"b', 'holds "'), ("a*", r"holds \*"), ("a|b", r"holds \|"),
    ("a<b", "holds <"), ("a\\b", r"holds \\"), ("a.", "dot or a space"), ("a ", "dot or a space"),
])  # fmt: skip
def test_names_that_windows_cannot_have_are_refused_there_only(monkeypatch, name, words):
    monkeypatch.setattr(names, "IS_WINDOWS", False)
    names.check_name(name, "It")
    monkeypatch.setattr(names, "IS_WINDOWS", True)
    with pytest.raises(DeltaError, match=f"^It .*{words}.*Choose another one.$"):
        names.check_name(name, "It")


def test_what_a_name_counts_as_long_by(monkeypatch):
    monkeypatch.setattr(names, "IS_WINDOWS", False)
    names.check_name("x" * 241, "It")
    for name in ("x" * 242, "猫" * 81):
        with pytest.raises(DeltaError, match="too long"):
            names.check_name(name, "It")
    monkeypatch.setattr(names, "IS_WINDOWS", True)
    names.check_name("猫" * 241, "It")
    with pytest.raises(DeltaError, match="too long"):
        names.check_name("🐱" * 121, "It")
