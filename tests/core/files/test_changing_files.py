"""Files that another program cuts short while they are read: an error in words, where mapped ones end the process."""

import subprocess
import sys
from pathlib import Path

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
import os, sys
from pathlib import Path
from sara_core import SparseDelta
from sara_core.conversion.read import read_delta
from sara_core.errors import DeltaError
from sara_core.files import container
from sara_core.training import snapshot

folder, safe_open = Path(sys.argv[1]), container.safe_open
path = folder / f"{sys.argv[2]}.safetensors"

def opened_and_cut(mapped, **options):
    file = safe_open(mapped, **options)
    if Path(mapped).stem != "base":
        with open(path, "rb") as content:
            header_ends = container.read_header(content)[1]
        os.truncate(path, header_ends + 10)
    return file

container.safe_open = opened_and_cut
readers = {
    "delta": SparseDelta.load, "snapshot": snapshot.load,
    "adapter": lambda path: read_delta(path, folder / "base.safetensors", 0.5),
}
try:
    readers[sys.argv[2]](path)
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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not cut a file that is mapped")
@pytest.mark.parametrize("kind", ["delta", "snapshot", "adapter"])
def test_a_file_that_others_may_write_is_not_mapped_even_for_its_header(files, kind, monkeypatch):
    """For as long as a header is checked its file may be cut short, too."""
    mapped, safe_open = [], container.safe_open
    monkeypatch.setattr(container, "safe_open", lambda path, **of: mapped.append(Path(path)) or safe_open(path, **of))
    path, base = files / f"{kind}.safetensors", files / "base.safetensors"
    read = {"delta": SparseDelta.load, "snapshot": snapshot.load, "adapter": lambda path: read_delta(path, base, 0.5)}
    read[kind](path)
    assert mapped and not any(one.exists() for one in mapped if one != base), "the file itself, or a copy that stayed"


def test_a_temporary_folder_without_room_keeps_nothing_from_being_read(files, monkeypatch):
    monkeypatch.setattr(container.tempfile, "NamedTemporaryFile", failing)
    assert SparseDelta.load(files / "delta.safetensors").nnz == NUMBERS


def failing(**options):
    raise OSError(28, "No space left on device")


def test_tensors_of_every_dtype_are_read_as_they_are(tmp_path):
    dtypes = (torch.float8_e4m3fn, torch.float8_e5m2, torch.bool, torch.int8, torch.int16, torch.uint8, torch.float64,
              torch.complex64)  # fmt: skip
    tensors = {str(dtype): torch.arange(6).to(dtype).view(2, 3) for dtype in dtypes}
    tensors |= {"scalar": torch.tensor(3.5), "none": torch.empty(0, 4), "of another": torch.empty(0).to(torch.int8)}
    save_file(tensors, tmp_path / "a.safetensors")
    with container.opened_copied(tmp_path / "a.safetensors") as file:
        for name, tensor in tensors.items():
            read = file.get_tensor(name)
            assert read.dtype == tensor.dtype and read.shape == tensor.shape
            assert read.flatten().tolist() == tensor.flatten().tolist(), name


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
