"""A small file does not mean long work, nor a wait that nobody can end, and what is no file is left alone."""

import os
import socket
import zlib

import numpy
import pytest
import torch
from safetensors.torch import save_file

from sara_core import SparseDelta, SparseEntry
from sara_core.__main__ import main
from sara_core.delta import file_v1
from sara_core.delta.file_v1 import encode_indices, stream_positions, unpacked_stream
from sara_core.errors import DeltaError
from sara_core.files import container
from sara_core.names.unet import UNetNames


def delta(weights=3):
    entry = SparseEntry(torch.tensor([1], dtype=torch.int32), torch.tensor([0.5]), (2, 4))
    return SparseDelta({f"block{number}.weight": entry for number in range(weights)})


def huge(path, entries=3, numel=2**31 - 1):
    """A file of a few bytes whose positions are at the ends of weights as large as there can be."""
    packed = bytearray(zlib.compress(b"\xff" * ((numel - 1) // 255) + bytes([(numel - 1) % 255]), 9))
    tensors = {}
    for number in range(entries):
        tensors[f"a{number}.sara1_head"] = torch.tensor([0, 1, numel])
        tensors[f"a{number}.sara1_index"] = torch.frombuffer(packed, dtype=torch.uint8).clone()
        tensors[f"a{number}.sara1_values"] = torch.ones(1)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("limit, value, words", [
    ("MOST_ENTRIES", 2, "changes of 3 weights, and no more than 2 are read"),
    ("MOST_ELEMENTS", 23, "weights of 24 elements together, and of no more than 23 are read"),
])  # fmt: skip
def test_a_delta_of_more_than_any_model_has_is_refused(tmp_path, monkeypatch, limit, value, words):
    path = tmp_path / "much.safetensors"
    delta().save(path)
    monkeypatch.setattr(file_v1, limit, value + 1)
    assert SparseDelta.load(path).nnz == 3
    monkeypatch.setattr(file_v1, limit, value)
    with pytest.raises(DeltaError, match=words):
        SparseDelta.load(path)


def test_weights_of_an_impossible_size_together_are_refused_before_anything_is_unpacked(tmp_path, monkeypatch):
    path = huge(tmp_path / "huge.safetensors", entries=129)
    monkeypatch.setattr(file_v1, "unpacked_stream", None)
    with pytest.raises(DeltaError, match="277,025,390,463 elements together"):
        SparseDelta.load(path)


@pytest.mark.parametrize("limit, words", [("MOST_METADATA", "entries of metadata"), ("MOST_TENSORS", "9 tensors")])
def test_any_file_with_too_much_in_it_is_refused(tmp_path, monkeypatch, limit, words):
    path = tmp_path / "much.safetensors"
    SparseDelta(delta().entries, {f"key {number}": "text" for number in range(8)}).save(path)
    monkeypatch.setattr(container, limit, 9)
    assert SparseDelta.load(path).nnz == 3
    monkeypatch.setattr(container, limit, 8)
    with pytest.raises(DeltaError, match=f"has .*{words}, and no more than 8 are read"):
        SparseDelta.load(path)


def test_what_reads_a_delta_is_asked_after_each_weight_and_may_stop(tmp_path):
    path, seen = tmp_path / "some.safetensors", []
    delta(4).save(path)

    def stop(done, total):
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SparseDelta.load(path, on_progress=stop)
    assert seen == [(1, 4), (2, 4)]


@pytest.mark.parametrize("positions, numel", [
    ([2**31 - 2], 2**31 - 1), ([0, 2**31 - 2], 2**31 - 1), ([254, 255, 256, 70_000, 140_000], 10**6), ([], 5000),
    ([5099], 5100), ([0, 255, 510, 5099], 5100),
])  # fmt: skip
def test_few_positions_in_a_large_weight_are_read_alike(positions, numel):
    packed = encode_indices(numpy.array(positions, dtype=numpy.int32))
    stream = unpacked_stream(packed, len(positions), numel)
    assert stream_positions(stream, len(positions), numel).tolist() == positions
    if positions:
        with pytest.raises(ValueError, match="points outside|more than its weight"):
            smaller = positions[-1]
            stream_positions(unpacked_stream(packed, len(positions), smaller), len(positions), smaller)


@pytest.mark.parametrize("name", [
    "down_blocks.3.attentions.99999999.norm.weight", "down_blocks.99999999.resnets.99999999.conv1.weight",
    "input_blocks.99999999.0.op.weight", f"input_blocks.{'9' * 5000}.0.op.weight",
    f"down_blocks.0.resnets.{'٩' * 8}.conv1.weight",
])  # fmt: skip
def test_blocks_that_a_name_makes_up_are_not_counted(name):
    ends = ["conv_in.bias", "conv_norm_out.bias"] if "_blocks" in name[:11] else ["input_blocks.0.0.bias", "out.0.bias"]
    shapes = {name: (8, 8), **dict.fromkeys(ends, (8,))}
    assert len(UNetNames(shapes)._to_ldm) < 20_000


def oddity(kind, path):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "broken link":
        path.symlink_to(path.parent / "nowhere")
    else:
        path.symlink_to("/dev/null")
    return path


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
@pytest.mark.parametrize("kind", ["pipe", "socket", "broken link", "device"])
@pytest.mark.parametrize("command", [
    ["convert", "{odd}", "{out}"], ["inspect", "{odd}"], ["inspect", "{file}", "--base", "{odd}"],
    ["merge", "{out}", "{odd}"], ["bake", "{odd}", "{out}", "{file}"], ["extract", "{odd}", "{file}", "{out}"],
])  # fmt: skip
def test_what_is_no_file_is_no_input(tmp_path, monkeypatch, capsys, kind, command):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    delta().save("file.safetensors")
    odd = oddity(kind, tmp_path / "odd.safetensors")
    places = {"odd": odd.name, "file": "file.safetensors", "out": "out.safetensors"}
    assert main([part.format(**places) for part in command]) == 1
    assert "ordinary file" in capsys.readouterr().err
    assert not os.path.exists("out.safetensors")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_not_replaced(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    delta().save("file.safetensors")
    odd = oddity(kind, tmp_path / "odd.safetensors")
    for command in (["merge", odd.name, "file.safetensors"], ["convert", "file.safetensors", odd.name]):
        assert main(command) == 1
        assert "ordinary file" in capsys.readouterr().err
    assert os.path.lexists(odd) and not odd.is_file()
