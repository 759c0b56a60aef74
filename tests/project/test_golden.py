"""`dev.py bench golden` finds what differs between two folders of results, to the last bit."""

import json
import math
import re
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.golden_.checkouts import NoSuchRevision, check_out, full_name
from benchmarks.golden_.compare import compare_folders
from benchmarks.golden_.records import Records, nested

BAKED = '{"changed": 3, "delta": {"a": "1", "b": "2"}}'


@pytest.fixture
def folders(tmp_path):
    """Two folders of equal results."""
    old, new = tmp_path / "old", tmp_path / "new"
    tensors = {"w": torch.tensor([0.0, math.nan, 1.0]), "b": torch.arange(4, dtype=torch.int32).view(2, 2)}
    (old / "part").mkdir(parents=True)
    save_file(tensors, old / "part/delta.safetensors", {"sara.family": "SD1.5", "sara.baked": BAKED})
    (old / "report.txt").write_text("one\ntwo\n")
    (old / "picture.png").write_bytes(b"\x89PNG\xff\x00")
    shutil.copytree(old, new)
    return old, new


def rewritten(path, metadata=None, **changes):
    """Write a delta file again with other tensors or metadata."""
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path,
              metadata or {"sara.family": "SD1.5", "sara.baked": BAKED})  # fmt: skip


def test_equal_folders_are_equal_and_counted(folders):
    result = compare_folders(*folders)
    assert (result.differences, result.files, result.tensors) == ([], 3, 2)
    assert result.bytes == sum(path.stat().st_size for path in folders[0].rglob("*") if path.is_file())


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


CHANGES = {
    "a bit": (lambda new: flip(new / "part/delta.safetensors"), "part/delta.safetensors: tensor 'b': 1 of 16 bytes"),
    "the sign of a zero": (
        lambda new: rewritten(new / "part/delta.safetensors", w=torch.tensor([-0.0, math.nan, 1.0])),
        "tensor 'w': 1 of 12 bytes",
    ),
    "a dtype": (
        lambda new: rewritten(new / "part/delta.safetensors", b=torch.arange(4, dtype=torch.int64).view(2, 2)),
        "tensor 'b': it is I32 in the old one, I64 in the new one",
    ),
    "a shape": (
        lambda new: rewritten(new / "part/delta.safetensors", b=torch.arange(4, dtype=torch.int32)),
        r"tensor 'b': its shape is \[2, 2\] in the old one, \[4\] in the new one",
    ),
    "a tensor less": (lambda new: rewritten(new / "part/delta.safetensors", b=None), "tensor 'b' is only in the old"),
    "a tensor more": (
        lambda new: rewritten(new / "part/delta.safetensors", c=torch.zeros(1)), "tensor 'c' is only in the new"
    ),
    "a metadata value": (
        lambda new: rewritten(new / "part/delta.safetensors", {"sara.family": "SDXL", "sara.baked": BAKED}),
        "metadata key 'sara.family': 'SD1.5' in the old one, 'SDXL' in the new one",
    ),
    "a metadata key": (
        lambda new: rewritten(new / "part/delta.safetensors", {"sara.baked": BAKED}),
        "metadata key 'sara.family' is only in the old one",
    ),
    "what the metadata quote": (
        lambda new: rewritten(
            new / "part/delta.safetensors", {"sara.family": "SD1.5", "sara.baked": BAKED.replace("3", "4")}
        ),
        "metadata key 'sara.baked'",
    ),
    "a text": (lambda new: (new / "report.txt").write_text("one\ntoo\n"), r"report.txt: .*tw.*in the old one.*to"),
    "the end of a text": (lambda new: (new / "report.txt").write_text("one\n"), "report.txt: .*two"),
    "other bytes": (lambda new: flip(new / "picture.png"), "picture.png: differs from byte 5 on"),
    "a file less": (lambda new: (new / "report.txt").unlink(), "report.txt: only the old one is there"),
    "a file more": (lambda new: (new / "new.txt").write_text(""), "new.txt: only the new one is there"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_reported_alone(folders, change):
    make, words = CHANGES[change]
    make(folders[1])
    (difference,) = compare_folders(*folders).differences
    assert re.search(words, difference), difference


def test_tensors_in_another_order_are_reported(folders):
    path = folders[1] / "part/delta.safetensors"
    tensors = load_file(path)
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    data = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    names, end = sorted(data, key=lambda name: header[name]["data_offsets"], reverse=True), 0
    for name in names:
        header[name]["data_offsets"] = [end, end := end + len(data[name])]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data[name] for name in names))
    assert compare_folders(*folders).differences == ["part/delta.safetensors: its tensors lie in another order"]


def test_metadata_that_are_quoted_in_another_order_are_equal(folders):
    quoted = '{"delta": {"b": "2", "a": "1"}, "changed": 3}'
    rewritten(folders[1] / "part/delta.safetensors", {"sara.family": "SD1.5", "sara.baked": quoted})
    assert compare_folders(*folders).differences == []


def test_records_keep_every_bit_and_what_is_around_the_tensors(tmp_path):
    Records(tmp_path).value("a/b", {"state": {0: {"step": torch.tensor(3.0)}}, "losses": [0.1, math.nan], "none": None})
    assert nested(load_file(tmp_path / "a/b.safetensors")) == {"state": {"0": {"step": torch.tensor(3.0)}}}
    text = (tmp_path / "a/b.json").read_text()
    assert '"<tensor state/0/step>"' in text and "0.1" in text and "NaN" in text
    with pytest.raises(TypeError, match="other is a object"):
        Records(tmp_path).value("c", {"other": object()})


@pytest.fixture
def repository(tmp_path):
    """One commit with one file, which was changed since; and another that is ignored."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "file").write_text("committed")
    (folder / ".gitignore").write_text("ignored\n")
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "One"]):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True)
    (folder / "file").write_text("changed")
    (folder / "new").write_text("new")
    (folder / "ignored").write_text("ignored")
    return folder


def test_a_revision_or_the_working_tree_is_checked_out(tmp_path, repository):
    check_out(repository, full_name(repository, "HEAD"), tmp_path / "commit")
    check_out(repository, ".", tmp_path / "tree")
    found = {folder: {path.name: path.read_text() for path in (tmp_path / folder).iterdir()}
             for folder in ("commit", "tree")}  # fmt: skip
    assert found["commit"] == {"file": "committed", ".gitignore": "ignored\n"}
    assert found["tree"] == {"file": "changed", "new": "new", ".gitignore": "ignored\n"}
    with pytest.raises(NoSuchRevision, match="no such"):
        full_name(repository, "no such")
