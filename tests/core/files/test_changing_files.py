"""Files that another program cuts short while they are read: an error in words, where mapped ones end the process."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from devtools.comfyui.install import ROOT
from sara_core import SparseDelta
from sara_core.conversion.read import read_delta
from sara_core.delta import SparseEntry
from sara_core.errors import DeltaError
from sara_core.files import container
from sara_core.training import snapshot

NUMBERS = 100_000
NAME = "diffusion_model.input_blocks.1.weight"

# Reads each file, whose tensors are cut off as soon as it has been opened.
PROGRAM = """
import contextlib, os, sys
from pathlib import Path
from sara_core import SparseDelta
from sara_core.conversion.read import read_delta
from sara_core.errors import DeltaError
from sara_core.files import container
from sara_core.training import snapshot

folder, opened = Path(sys.argv[1]), container.opened

@contextlib.contextmanager
def opened_and_cut(path):
    with opened(path) as file:
        if path.stem != "base":
            with open(path, "rb") as content:
                header_ends = container.read_header(content)[1]
            os.truncate(path, header_ends + 10)
        yield file

container.opened = opened_and_cut
readers = {
    "delta": SparseDelta.load, "snapshot": snapshot.load,
    "adapter": lambda path: read_delta(path, folder / "base.safetensors", 0.5),
}
try:
    readers[sys.argv[2]](folder / f"{sys.argv[2]}.safetensors")
except DeltaError as error:
    print(error)
"""


@pytest.fixture
def files(tmp_path):
    """One file for each reader, and the base of the adapter."""
    entry = SparseEntry(torch.arange(NUMBERS, dtype=torch.int32) * 3, torch.ones(NUMBERS), (600, 600))
    SparseDelta({NAME: entry}).save(tmp_path / "delta.safetensors")
    snapshot.save(tmp_path / "snapshot.safetensors", {"step": 3, "values": torch.ones(NUMBERS)}, {"seed": 1})
    save_file({f"model.{NAME}": torch.zeros(600, 600)}, tmp_path / "base.safetensors")
    save_file({NAME.replace(".weight", ".diff"): torch.ones(600, 600)}, tmp_path / "adapter.safetensors")
    return tmp_path


def test_undisturbed_the_files_are_read(files):
    assert SparseDelta.load(files / "delta.safetensors").nnz == NUMBERS
    assert snapshot.load(files / "snapshot.safetensors")[0]["step"] == 3
    assert read_delta(files / "adapter.safetensors", files / "base.safetensors", 0.5).delta.nnz == 180_000


@pytest.mark.parametrize("kind", ["delta", "snapshot", "adapter"])
def test_a_file_that_is_cut_short_meanwhile_gives_an_error_in_words(files, kind):
    command = [sys.executable, "-c", PROGRAM, str(files), kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-500:]}"
    assert f"'{kind}.safetensors' was changed by another program while it was read" in done.stdout


def test_a_file_with_another_header_by_now_is_refused(tmp_path):
    path, other = tmp_path / "delta.safetensors", tmp_path / "other.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(3)}, path)
    save_file({"a": torch.ones(2), "b": torch.ones(5)}, other)
    with container.opened(path) as file, open(other, "rb") as content:
        copied = container.Copied(file, content)
        for name in "ab":
            with pytest.raises(DeltaError, match="'other.safetensors' was changed by another program"):
                copied.get_tensor(name)


def headed(header):
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize("content", [
    b"", b"\0\0", b"\x10" + bytes(7) + b"not as it was", b"<html>404 not found</html>", b"\xff" * 60,
    headed(b"[" * 200_000),
])  # fmt: skip
def test_a_file_without_a_header_by_now_is_refused(tmp_path, content):
    path, other = tmp_path / "delta.safetensors", tmp_path / "other.safetensors"
    save_file({"a": torch.ones(4)}, path)
    other.write_bytes(content)
    with container.opened(path) as file, open(other, "rb") as now, pytest.raises(DeltaError, match="was changed by"):
        container.Copied(file, now)


@pytest.mark.parametrize("header", [
    b"[]", b"3", b'{"b": {}}', b'{"a": 7}', b'{"a": {"shape": [4]}}', b'{"a": {"shape": [4], "dtype": "F32"}}',
    b'{"a": {"shape": [4], "dtype": []}}', b'{"a": {"shape": [4], "dtype": "F32", "data_offsets": 5}}',
    b'{"a": {"shape": [4], "dtype": "F32", "data_offsets": ["0", "16"]}}',
    b'{"a": {"shape": [4], "dtype": "F32", "data_offsets": [-900, -884]}}',
    b'{"a": {"shape": [4], "dtype": "F32", "data_offsets": [99999999999999999999999, 99999999999999999999999]}}',
    b'{"a": {"shape": [4], "dtype": "F64", "data_offsets": [0, 32]}}',
])  # fmt: skip
def test_a_header_that_says_something_else_by_now_is_refused(tmp_path, header):
    path, other = tmp_path / "delta.safetensors", tmp_path / "other.safetensors"
    save_file({"a": torch.ones(4)}, path)
    other.write_bytes(headed(header) + bytes(16))
    with container.opened(path) as file, open(other, "rb") as now, pytest.raises(DeltaError, match="was changed by"):
        container.Copied(file, now).get_tensor("a")


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.uint8,
    torch.bool, torch.float8_e4m3fn,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (), (0, 4)])
def test_tensors_are_copies_of_what_the_file_holds(tmp_path, dtype, shape):
    path = tmp_path / "x.safetensors"
    tensor = (torch.arange(15) % 2).to(dtype)[: torch.Size(shape).numel()].reshape(shape)
    save_file({"before": torch.ones(7), "x": tensor}, path)
    with container.opened_copied(path) as file:
        read, not_read = file.get_tensor("x"), file.not_read("x")
        assert not_read.dtype == dtype and not_read.shape == tensor.shape
    path.write_bytes(bytes(path.stat().st_size))
    assert read.dtype == dtype and read.shape == tensor.shape
    assert torch.equal(read.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
