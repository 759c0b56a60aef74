"""The delta file: exact round trips, the page as its only specification, and atomic writing."""

import errno
import json
import math
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from sara_core.delta import SparseDelta, SparseEntry
from sara_core.delta import file_v1
from sara_core.errors import DeltaError
from sara_core.files import atomic
from tests.support.positions import unpacked_positions

ROOT = Path(__file__).resolve().parents[3]
VECTORS = ROOT / "tests" / "vectors"


def entry(shape, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randperm(math.prod(shape), generator=generator)[:count].sort().values.to(torch.int32)
    return SparseEntry(positions, torch.randn(count, generator=generator) * 0.01, tuple(shape))


def small_delta():
    return SparseDelta(
        {"diffusion_model.a.weight": entry((20, 30), 7), "diffusion_model.a.bias": entry((20,), 3, 1)},
        {"sara.family": "SD1.5", "modelspec.title": "Ünïcode ✓"},
    )


def assert_same(first, second):
    assert first.entries.keys() == second.entries.keys()
    for name, one in first.entries.items():
        other = second.entries[name]
        assert one.shape == other.shape and one.values.dtype == other.values.dtype
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.values.view(torch.uint8), other.values.view(torch.uint8))


def test_every_bit_comes_back(tmp_path):
    values = torch.tensor([-0.0, 1e-45, 3.4028235e38, 1 / 3], dtype=torch.float32)
    delta = small_delta() + SparseDelta(
        {"odd.weight": SparseEntry(torch.tensor([0, 254, 255, 999], dtype=torch.int32), values, (1000,))}
    )
    delta.save(tmp_path / "x.safetensors")
    assert_same(SparseDelta.load(tmp_path / "x.safetensors"), delta)


def test_metadata_is_kept_and_the_version_added(tmp_path):
    delta = small_delta()
    delta.save(tmp_path / "x.safetensors")
    assert SparseDelta.load(tmp_path / "x.safetensors").metadata == {**delta.metadata, "sara.version": "1"}


def test_bf16_values_are_rounded_to_nearest(tmp_path):
    delta = small_delta()
    delta.save(tmp_path / "x.safetensors", torch.bfloat16)
    loaded = SparseDelta.load(tmp_path / "x.safetensors")
    for name, one in delta.entries.items():
        assert torch.equal(loaded.entries[name].values, one.values.to(torch.bfloat16))


def test_saving_a_loaded_bf16_delta_again_loses_nothing(tmp_path):
    small_delta().save(tmp_path / "x.safetensors", torch.bfloat16)
    loaded = SparseDelta.load(tmp_path / "x.safetensors")
    loaded.save(tmp_path / "y.safetensors", torch.bfloat16)
    assert_same(SparseDelta.load(tmp_path / "y.safetensors"), loaded)


def test_saving_is_deterministic(tmp_path):
    small_delta().save(tmp_path / "x.safetensors")
    reversed_delta = SparseDelta(dict(reversed(small_delta().entries.items())), small_delta().metadata)
    reversed_delta.save(tmp_path / "y.safetensors")
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()


def test_the_container_is_plain_safetensors(tmp_path):
    small_delta().save(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        names = set(file.keys())
        assert file.get_tensor("diffusion_model.a.sara1_head").tolist() == [0, 7, 20, 30]
        assert file.get_tensor("diffusion_model.a.bias.sara1_head").tolist() == [1, 3, 20]
    parts = ("head", "index", "values")
    stems = ("diffusion_model.a", "diffusion_model.a.bias")
    assert names == {f"{stem}.sara1_{part}" for stem in stems for part in parts}


def test_every_tensor_is_aligned_for_programs_that_map_the_file(tmp_path):
    odd = SparseDelta({f"diffusion_model.{name}.weight": entry((50,), 7, 2) for name in "abc"})
    odd.save(tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    sizes = {"I64": 8, "F32": 4, "U8": 1}
    for name, tensor in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            assert (8 + length + tensor["data_offsets"][0]) % sizes[tensor["dtype"]] == 0


def read_by_the_page(path):
    """An independent reader, written from docs/format.md with nothing but the standard library."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header.pop("__metadata__", {})

    def tensor(name):
        begin, end = header[name]["data_offsets"]
        return data[begin:end]

    entries = {}
    for name in header:
        if not name.endswith(".sara1_head"):
            continue
        stem = name.removesuffix(".sara1_head")
        kind, count, *shape = struct.unpack(f"<{header[name]['shape'][0]}q", tensor(name))
        positions, total = [], 0
        for byte in zlib.decompress(tensor(f"{stem}.sara1_index")):
            total += byte
            if byte != 255:
                positions.append(total + len(positions))
        raw = tensor(f"{stem}.sara1_values")
        if header[f"{stem}.sara1_values"]["dtype"] == "BF16":
            raw = b"".join(b"\0\0" + raw[place : place + 2] for place in range(0, len(raw), 2))
        values = list(struct.unpack(f"<{count}f", raw))
        entries[f"{stem}.weight" if kind == 0 else stem] = {"shape": shape, "positions": positions, "values": values}
    return {"metadata": metadata, "entries": entries}


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_vectors_say_what_their_json_says(name):
    expected = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    assert read_by_the_page(VECTORS / f"{name}.safetensors") == expected
    delta = SparseDelta.load(VECTORS / f"{name}.safetensors")
    assert delta.metadata == expected["metadata"]
    ours = {
        weight: {"shape": list(shape), "positions": indices.tolist(), "values": values.tolist()}
        for weight, (indices, values, shape) in delta.entries.items()
    }
    assert repr(sorted(ours.items())) == repr(sorted(expected["entries"].items()))  # repr tells -0.0 from 0.0


def test_what_is_written_today_reads_by_the_page(tmp_path):
    delta = small_delta()
    delta.save(tmp_path / "x.safetensors")
    read = read_by_the_page(tmp_path / "x.safetensors")["entries"]
    assert read.keys() == delta.entries.keys()
    for name, one in delta.entries.items():
        assert read[name]["positions"] == one.indices.tolist() and read[name]["values"] == one.values.tolist()


def test_the_example_of_the_page():
    stream = zlib.decompress(file_v1.encode_indices(numpy.array([0, 2, 3, 300, 1000], dtype=numpy.int32)))
    assert stream.hex(" ").upper() == "00 01 00 FF 29 FF FF BD"
    assert stream.hex(" ").upper() in (ROOT / "docs" / "format.md").read_text(encoding="utf-8")


@given(st.sets(st.integers(0, 5000), max_size=200), st.integers(0, 3000))
@settings(max_examples=200, deadline=None)
def test_positions_come_back(positions, more):
    indices = numpy.array(sorted(positions), dtype=numpy.int32)
    numel = (int(indices[-1]) + 1 if len(indices) else 1) + more
    decoded = unpacked_positions(file_v1.encode_indices(indices), len(indices), numel)
    assert decoded.dtype == numpy.int32 and numpy.array_equal(decoded, indices)


@pytest.mark.parametrize("positions", [[2**31 - 2], [0, 2**31 - 2], [2**31 - 3, 2**31 - 2]])
def test_positions_at_the_end_of_the_largest_weight(positions):
    indices = numpy.array(positions, dtype=numpy.int32)
    assert unpacked_positions(file_v1.encode_indices(indices), len(positions), 2**31 - 1).tolist() == positions


def test_a_stream_whose_sum_int32_cannot_hold_is_refused():
    count = 8_600_000
    packed = zlib.compress(b"\xfe" * count)
    with pytest.raises(ValueError, match="points outside"):
        unpacked_positions(packed, count, 2**31 - 1)


def test_entries_come_back_in_order_however_many_threads_there_are(tmp_path, monkeypatch):
    delta = SparseDelta({f"{number:03}.weight": entry((60, 50), number * 7, number) for number in range(100)})
    files = []
    for threads in (1, 8):
        monkeypatch.setattr(file_v1, "_THREADS", threads)
        monkeypatch.setattr(file_v1, "_WORTH_THREADS", 0 if threads > 1 else math.inf)
        path = tmp_path / f"{threads}.safetensors"
        delta.save(path)
        files.append(path.read_bytes())
        loaded = SparseDelta.load(path)
        assert list(loaded.entries) == list(delta.entries)
        assert_same(loaded, delta)
    assert files[0] == files[1]


@pytest.mark.parametrize("density", [0.002, 0.005, 0.01, 0.2, 0.5])
def test_an_index_that_is_packed_is_close_to_its_entropy(density):
    numel, random = 1_000_000, numpy.random.default_rng(0)
    indices = numpy.flatnonzero(random.random(numel) < density).astype(numpy.int32)
    share = len(indices) / numel
    entropy = numel * -(share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8
    assert len(file_v1.encode_indices(indices)) <= 1.03 * entropy


@pytest.mark.parametrize("dtype, limit", [(torch.bfloat16, 3.1), (torch.float32, 5.1)])
def test_bytes_per_element_at_one_per_cent(tmp_path, dtype, limit):
    delta = SparseDelta({f"layer{place}.weight": entry((1000, 1000), 10_000, place) for place in range(4)})
    delta.save(tmp_path / "x.safetensors", dtype)
    assert (tmp_path / "x.safetensors").stat().st_size <= limit * delta.nnz


def test_only_float32_and_bfloat16_and_safetensors_can_be_saved(tmp_path):
    with pytest.raises(DeltaError, match="float16"):
        small_delta().save(tmp_path / "x.safetensors", torch.float16)
    with pytest.raises(DeltaError, match="safetensors"):
        small_delta().save(tmp_path / "x.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_values_that_bf16_cannot_hold_are_refused(tmp_path):
    delta = SparseDelta({"a": SparseEntry(torch.zeros(1, dtype=torch.int32), torch.tensor([3.4028e38]), (4,))})
    with pytest.raises(DeltaError, match="float32"):
        delta.save(tmp_path / "x.safetensors", torch.bfloat16)


def test_names_that_the_file_could_not_tell_apart_are_refused(tmp_path):
    delta = SparseDelta({"a": entry((4,), 1)})
    delta.entries["a.weight"] = entry((4,), 1)
    with pytest.raises(DeltaError, match="'a'"):
        delta.save(tmp_path / "x.safetensors")


def test_a_module_without_a_name_keeps_its_weight(tmp_path):
    delta = SparseDelta({"weight": entry((4,), 1), "bias": entry((4,), 1)})
    delta.save(tmp_path / "x.safetensors")
    assert_same(SparseDelta.load(tmp_path / "x.safetensors"), delta)


class Full:
    """A file on a full disk: takes a few bytes, then no more."""

    def __init__(self, file, error):
        self.file, self.error, self.left = file, error, 100

    def write(self, data):
        self.left -= len(data)
        if self.left < 0:
            raise OSError(self.error, os.strerror(self.error))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *details):
        return self.file.__exit__(*details)


@pytest.mark.parametrize(
    "error, words", [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EIO, "Choose another folder")]
)
def test_a_failed_save_loses_nothing(tmp_path, monkeypatch, error, words):
    path = tmp_path / "x.safetensors"
    small_delta().save(path)
    before = path.read_bytes()
    monkeypatch.setattr(atomic, "open", lambda *arguments: Full(open(*arguments), error), raising=False)
    with pytest.raises(DeltaError, match=words):
        (small_delta() * 2).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="POSIX has file size limits")
def test_a_save_that_the_system_cuts_off_loses_nothing(tmp_path):
    import resource

    path = tmp_path / "x.safetensors"
    small_delta().save(path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    large = SparseDelta({"a": entry((1000, 1000), 100_000)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(DeltaError, match="could not be saved"):
            large.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DeltaError, match="folder does not exist"):
        small_delta().save(tmp_path / "missing" / "x.safetensors")


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(DeltaError, match="could not be saved"):
        small_delta().save(tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_an_interrupted_save_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    small_delta().save(path)
    before = path.read_bytes()

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        (small_delta() * 2).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_process_killed_while_saving_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.safetensors"
    small_delta().save(path)
    before = path.read_bytes()
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from sara_core.delta import SparseDelta\n"
        "from sara_core.files import container\n"
        "write = container.write_tensor\n"
        "def killed(file, tensor): write(file, tensor); file.flush(); os._exit(9)\n"
        "container.write_tensor = killed\n"
        "(SparseDelta.load(sys.argv[2]) * 2).save(sys.argv[2])\n"
    )
    finished = subprocess.run([sys.executable, "-c", program, str(ROOT), str(path)])
    assert finished.returncode == 9
    assert path.read_bytes() == before
    leftovers = [other for other in tmp_path.iterdir() if other != path]
    assert len(leftovers) == 1 and leftovers[0].suffix == ".tmp"  # written beside it, and never offered by a host


def test_the_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(atomic.os, "fsync", lambda descriptor: (events.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(atomic.os, "replace", lambda *paths: (events.append("replace"), replace(*paths)))
    small_delta().save(tmp_path / "x.safetensors")
    assert events == ["fsync", "replace"] + (["fsync"] if os.name == "posix" else [])


def test_a_decoded_entry_has_memory_of_its_own():
    """What it was decoded from may be a mapped file."""
    stem, tensors = file_v1.encode("a.weight", entry((6, 7), 5), torch.float32)
    named = dict(zip(file_v1.part_names(stem), (tensor.clone() for tensor in tensors)))
    _, decoded = file_v1.decode(stem, named.__getitem__)
    before = [decoded.indices.clone(), decoded.values.clone()]
    for tensor in named.values():
        tensor.zero_()
    assert torch.equal(decoded.indices, before[0]) and torch.equal(decoded.values, before[1])
