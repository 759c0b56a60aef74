"""A delta's file looked at without its changes, and what is said of it written into it."""

import hashlib
import json
import os
import struct

import pytest
import torch
from safetensors import safe_open

from sara_core.delta import SparseDelta, SparseEntry, modelspec
from sara_core.delta.about import FIELDS, about, write_about
from sara_core.delta.describe import density_by_block
from sara_core.delta.head import density_of_file, read_head
from sara_core.errors import DeltaError
from sara_core.files import header

SAID = {"modelspec.title": "Ink", "sara.family": "SD1.5", "modelspec.sai_model_spec": "1.0.0"}
NAMES = ("diffusion_model.input_blocks.1.0.a.weight", "diffusion_model.input_blocks.10.0.a.weight",
         "diffusion_model.input_blocks.2.0.a.weight", "diffusion_model.out.bias")  # fmt: skip


@pytest.fixture
def delta():
    entries = {
        name: SparseEntry(torch.arange(n + 1, dtype=torch.int32), torch.randn(n + 1), (4, 5))
        for n, name in enumerate(NAMES)
    }
    return SparseDelta(entries, SAID)


@pytest.fixture
def file(tmp_path, delta):
    path = tmp_path / "ink.safetensors"
    delta.save(path)
    return path


def test_the_head_says_what_the_whole_file_says(file, delta):
    head = read_head(file)
    assert (head.elements, head.weights, head.value_dtype) == (delta.nnz, len(NAMES), "F32")
    assert head.size == file.stat().st_size
    assert head.metadata == SparseDelta.load(file).metadata


def test_the_density_of_blocks_is_that_of_the_loaded_delta(file, delta):
    expected = {name: (block.count, block.of) for name, block in density_by_block(delta).items()}
    found = density_of_file(file)
    assert {name: (block.count, block.of) for name, block in found.items()} == expected
    assert list(found) == list(expected)


def test_of_a_long_list_no_more_than_headers_is_read(file, monkeypatch):
    """Also of a file of which nothing but the header is on the disk."""
    size = file.stat().st_size
    begin = header.read(file).begin
    os.truncate(file, begin)
    os.truncate(file, size)
    assert read_head(file).weights == len(NAMES)


def _raw(text: bytes, rest=b"", length=None):
    return struct.pack("<Q", len(text) if length is None else length) + text + rest


TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        _raw(b"{}", length=2**63),
        _raw(b"[]"),
        _raw(b"not json"),
        _raw(b'{"a":' * 100_000),
        _raw(json.dumps({"__metadata__": []}).encode()),
        _raw(json.dumps({"__metadata__": {"a": 1}}).encode()),
        _raw(json.dumps({"__metadata__": {"a": "\ud800"}}).encode()),
        _raw(json.dumps({"a": 1}).encode()),
        _raw(json.dumps({"a": {**TENSOR, "shape": [True]}}).encode(), b"1234"),
        _raw(json.dumps({"a": {**TENSOR, "shape": [-1]}}).encode(), b"1234"),
        _raw(json.dumps({"a": {**TENSOR, "shape": [1e300]}}).encode(), b"1234"),
        _raw(json.dumps({"a": {**TENSOR, "data_offsets": [4, 0]}}).encode(), b"1234"),
        _raw(json.dumps({"a": TENSOR}).encode(), b"123"),
        _raw(json.dumps({"a": TENSOR}).encode(), b"12345"),
    ],
    ids=lambda content: repr(content[8:48]),
)
def test_anything_else_is_refused_in_words(tmp_path, content):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    with pytest.raises(DeltaError, match="'odd.safetensors' is not a complete .safetensors file"):
        read_head(path)


def test_a_header_that_is_too_long_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(header, "LONGEST_HEADER", 100)
    path = tmp_path / "long.safetensors"
    path.write_bytes(_raw(json.dumps({"a": TENSOR}).encode() + b" " * 100, b"1234"))
    with pytest.raises(DeltaError, match="not a complete"):
        read_head(path)


def test_what_is_no_delta_or_no_file_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(_raw(json.dumps({"a": TENSOR}).encode(), b"1234"))
    with pytest.raises(DeltaError, match="not a SaRA delta"):
        read_head(path)
    with pytest.raises(DeltaError, match="cannot be read"):
        read_head(tmp_path / "gone.safetensors")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")
        with pytest.raises(DeltaError, match="no ordinary file"):
            read_head(tmp_path / "pipe.safetensors")


def tensors_of(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def test_what_is_said_is_written_and_every_tensor_stays(file):
    before, begin = tensors_of(file), header.read(file).begin
    bits = hashlib.sha256(file.read_bytes()[begin:]).digest()
    write_about(file, {"title": "Wet ink ✒", "trigger": " inkstyle ", "author": "", "notes": "two\nlines"})
    found = header.read(file)
    assert hashlib.sha256(file.read_bytes()[found.begin :]).digest() == bits
    after = tensors_of(file)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert about(found.metadata) == {
        "title": "Wet ink ✒", "trigger": "inkstyle", "author": "", "licence": "", "notes": "two\nlines",
    }  # fmt: skip
    assert found.metadata["sara.family"] == "SD1.5" and modelspec.HASH in found.metadata
    assert SparseDelta.load(file).metadata[modelspec.TITLE] == "Wet ink ✒"
    write_about(file, {"title": " "})
    assert modelspec.TITLE not in header.read(file).metadata
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "said, match",
    [({"title": "x" * 201}, "at most 200"), ({"title": 5}, "at most"), ({"name": "x"}, "no 'name'"),
     ({"notes": "\ud800"}, "half a character")],
)  # fmt: skip
def test_what_cannot_be_said_leaves_the_file_as_it_was(file, said, match):
    before = file.read_bytes()
    with pytest.raises(DeltaError, match=match):
        write_about(file, said)
    assert file.read_bytes() == before


def test_a_full_disk_leaves_the_file_as_it_was(file, monkeypatch):
    before = file.read_bytes()
    monkeypatch.setattr("sara_core.files.disk.free_bytes", lambda path: 10)
    with pytest.raises(DeltaError, match="are free"):
        write_about(file, {"title": "x"})
    assert file.read_bytes() == before


def test_a_model_of_others_is_never_rewritten(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(_raw(json.dumps({"a": TENSOR}).encode(), b"1234"))
    before = path.read_bytes()
    with pytest.raises(DeltaError, match="Only what is said of a delta"):
        write_about(path, {"title": "x"})
    assert path.read_bytes() == before


def test_too_long_texts_of_others_are_cut():
    assert about({key: "x" * 20_000 for key, _ in FIELDS.values()}) == {
        field: "x" * most for field, (_, most) in FIELDS.items()
    }
