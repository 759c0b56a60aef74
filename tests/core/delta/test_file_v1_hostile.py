"""Files that are damaged, foreign or made to harm: always our own error, never memory beyond what they declare."""

import math
import tracemalloc
import zlib

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sara_core.delta import SparseDelta, SparseEntry
from sara_core.delta import file_v1
from sara_core.errors import DeltaError
from tests.support.positions import unpacked_positions

STEM = "diffusion_model.a"


def parts(head=(0, 2, 3, 4), stream=(5, 0), values=(1.0, 2.0)):
    """The tensors of an entry that is sound unless arguments spoil it: positions 5 and 6 of a 3×4 weight."""
    return {
        f"{STEM}.sara1_head": torch.tensor(head, dtype=torch.int64),
        f"{STEM}.sara1_index": packed(bytes(stream)),
        f"{STEM}.sara1_values": torch.tensor(values),
    }


def of_bytes(content):
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def packed(stream):
    return of_bytes(zlib.compress(stream))


def changed(**tensors):
    return {**parts(), **{f"{STEM}.sara1_{part}": tensor for part, tensor in tensors.items()}}


def without(part):
    return {name: tensor for name, tensor in parts().items() if not name.endswith(part)}


HOSTILE = {
    "head missing": without("head"),
    "index missing": without("index"),
    "values missing": without("values"),
    "head empty": parts(head=()),
    "head of one number": parts(head=(0,)),
    "head int32": changed(head=torch.tensor([0, 2, 3, 4], dtype=torch.int32)),
    "head two-dimensional": changed(head=torch.tensor([[0, 2, 3, 4]])),
    "nine dimensions": parts(head=(0, 2) + (2,) * 9),
    "unknown kind": parts(head=(2, 2, 3, 4)),
    "negative kind": parts(head=(-1, 2, 3, 4)),
    "negative count": parts(head=(0, -2, 3, 4)),
    "count above the values": parts(head=(0, 3, 3, 4)),
    "count above the elements": parts(head=(0, 2, 1), stream=(0, 0)),
    "count that overflows": parts(head=(0, 2**62, 2**62, 4)),
    "negative side": parts(head=(0, 2, -3, -4)),
    "empty side": parts(head=(0, 2, 0, 4)),
    "too many elements": parts(head=(0, 2, 2**16, 2**15)),
    "sides whose product overflows": parts(head=(0, 2, 2**62, 2**62, 2**62)),
    "values float16": changed(values=torch.tensor([1.0, 2.0], dtype=torch.float16)),
    "values float64": changed(values=torch.tensor([1.0, 2.0], dtype=torch.float64)),
    "values integer": changed(values=torch.tensor([1, 2])),
    "values two-dimensional": changed(values=torch.tensor([[1.0, 2.0]])),
    "fewer values": parts(values=(1.0,)),
    "NaN": parts(values=(1.0, math.nan)),
    "infinity": parts(values=(-math.inf, 1.0)),
    "index not bytes": changed(index=torch.tensor([1, 2], dtype=torch.int32)),
    "index two-dimensional": changed(index=packed(b"\5\0").view(1, -1)),
    "index empty": changed(index=torch.zeros(0, dtype=torch.uint8)),
    "index not zlib": changed(index=of_bytes(b"hello world")),
    "index raw deflate": changed(index=of_bytes(zlib.compress(b"\5\0")[2:-4])),
    "index cut short": changed(index=packed(b"\5\0")[:-1]),
    "index checksum wrong": changed(index=of_bytes(zlib.compress(b"\5\0")[:-1] + b"!")),
    "index followed by something": changed(index=of_bytes(zlib.compress(b"\5\0") + b"\0")),
    "one position too few": parts(stream=(5,)),
    "one position too many": parts(stream=(5, 0, 0)),
    "no positions": parts(stream=()),
    "last position beyond the end": parts(stream=(5, 6)),
    "first position beyond the end": parts(stream=(12, 0)),
    "ends in an escape": parts(head=(0, 2, 3000), stream=(5, 0, 255)),
    "only escapes": parts(head=(0, 0, 3000), stream=(255, 255), values=()),
    "escapes that lead beyond the end": parts(head=(0, 2, 300), stream=(255, 255, 0, 0)),
    "newer version": {f"{STEM}.sara2_head": torch.zeros(3)},
    "newer version beside this one": {**parts(), "b.sara2_head": torch.zeros(3)},
    "unknown part": {**parts(), f"{STEM}.sara1_extra": torch.zeros(3)},
    "foreign tensors beside": {**parts(), "x.lora_up.weight": torch.zeros(3)},
    "nothing": {},
}


def write(path, tensors):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def test_the_untouched_entry_is_sound(tmp_path):
    delta = SparseDelta.load(write(tmp_path / "x.safetensors", parts()))
    assert delta.entries[f"{STEM}.weight"].indices.tolist() == [5, 6]


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_content_is_refused_with_the_file_named(tmp_path, what):
    path = write(tmp_path / "strange.safetensors", HOSTILE[what])
    with pytest.raises(DeltaError, match="strange.safetensors"):
        SparseDelta.load(path)


def test_a_damaged_entry_among_many_is_found_in_threads_too(tmp_path, monkeypatch):
    monkeypatch.setattr(file_v1, "_WORTH_THREADS", 0)
    sound = {f"{number}{name}": tensor for number in range(30) for name, tensor in parts().items()}
    spoilt = {f"x{name}": tensor for name, tensor in parts(values=(1.0, math.nan)).items()}
    with pytest.raises(DeltaError, match=f"x{STEM}.*NaN"):
        SparseDelta.load(write(tmp_path / "x.safetensors", {**sound, **spoilt}))


@pytest.mark.parametrize("what, words", [("newer version", "Update SaRA"), ("foreign tensors beside", "its own")])
def test_the_remedy_is_named(tmp_path, what, words):
    with pytest.raises(DeltaError, match=words):
        SparseDelta.load(write(tmp_path / "x.safetensors", HOSTILE[what]))


def test_a_file_that_is_no_delta_is_told_by_its_tensors(tmp_path):
    with pytest.raises(DeltaError, match="not a SaRA delta. Its tensors are called a.lora_A.weight: .*read_delta"):
        SparseDelta.load(write(tmp_path / "x.safetensors", {"a.lora_A.weight": torch.zeros(2)}))


@pytest.mark.parametrize("what", ["foreign tensors beside", "foreign tensors alone"])
def test_whoever_loads_says_what_to_do_with_a_foreign_file(tmp_path, what):
    tensors = HOSTILE.get(what, {"x.lora_up.weight": torch.zeros(3)})
    asked = []

    def advice(names):
        asked.append(set(names))
        return "Ask your aunt."

    with pytest.raises(DeltaError, match=r"^Cannot load 'x.safetensors'\. .*\. Ask your aunt\.$"):
        SparseDelta.load(write(tmp_path / "x.safetensors", tensors), advice)
    assert asked == [set(tensors)]


def tiny_delta():
    return SparseDelta({"a.weight": SparseEntry(torch.tensor([1, 300], dtype=torch.int32), torch.ones(2), (40, 40))})


def test_a_file_cut_at_any_byte_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    tiny_delta().save(path)
    whole, cut = path.read_bytes(), tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(DeltaError, match="cut.safetensors"):
            SparseDelta.load(cut)
    cut.write_bytes(whole + b"\0")
    with pytest.raises(DeltaError, match="cut.safetensors"):
        SparseDelta.load(cut)


def test_a_file_with_any_bit_flipped_is_refused_or_sound(tmp_path):
    path = tmp_path / "x.safetensors"
    tiny_delta().save(path)
    whole, flipped = bytearray(path.read_bytes()), tmp_path / "flipped.safetensors"
    refused = 0
    for place in range(len(whole)):
        for bit in (0, 3, 7):
            whole[place] ^= 1 << bit
            flipped.write_bytes(whole)
            whole[place] ^= 1 << bit
            try:
                SparseDelta.load(flipped)  # its constructor checks every entry
            except DeltaError:
                refused += 1
    assert refused > len(whole)


@pytest.mark.parametrize("missing", ["file", "folder given instead"])
def test_a_missing_file_is_named(tmp_path, missing):
    path = tmp_path / "gone.safetensors"
    if missing != "file":
        path.mkdir()
    with pytest.raises(DeltaError, match="gone.safetensors.*does not exist"):
        SparseDelta.load(path)


@pytest.mark.parametrize("byte", [0, 255])
def test_a_bomb_is_refused_before_memory_is_taken(byte):
    """A small index that unpacks to 256 MiB, in an entry of two positions."""
    packer = zlib.compressobj(9)
    bomb = b"".join([*(packer.compress(bytes([byte]) * 2**20) for _ in range(256)), packer.flush()])
    assert len(bomb) < 300_000
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than its weight has room for"):
            unpacked_positions(bomb, 2, 1_000_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_the_largest_shape_takes_no_more_than_its_stream_may():
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="positions"):
            unpacked_positions(zlib.compress(b"\xff" * 1000), 1, 2**31 - 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def reference(stream, count, numel):
    """The page's rules, byte by byte; None where it says to refuse."""
    positions, total = [], 0
    for byte in stream:
        total += byte
        if byte != 255:
            positions.append(total + len(positions))
    ends_well = not stream or stream[-1] != 255
    return positions if len(positions) == count and ends_well and all(p < numel for p in positions) else None


STREAMS = st.lists(st.one_of(st.just(255), st.just(0), st.integers(0, 255)), max_size=60).map(bytes)


@given(STREAMS, st.integers(-1, 2), st.integers(0, 4000))
@settings(max_examples=500, deadline=None)
def test_any_stream_decodes_as_the_page_says_or_is_refused(stream, more, numel):
    count = sum(byte != 255 for byte in stream) + more
    expected = reference(stream, count, numel)
    if expected is None or not 0 <= count <= numel:
        with pytest.raises(ValueError):
            unpacked_positions(zlib.compress(stream), count, numel)
    else:
        assert unpacked_positions(zlib.compress(stream), count, numel).tolist() == expected


@given(st.binary(max_size=80), st.integers(-5, 100), st.integers(-5, 2**31 - 1))
@settings(max_examples=500, deadline=None)
def test_any_bytes_give_sound_positions_or_a_value_error(index, count, numel):
    try:
        positions = unpacked_positions(index, count, numel)
    except ValueError:
        return
    assert len(positions) == count and (numpy.diff(positions) > 0).all()
    assert not count or (positions[0] >= 0 and positions[-1] < numel)


NUMBERS = st.one_of(st.integers(-2, 9), st.sampled_from([2**31 - 1, 2**31, 2**62, -(2**63)]))


@given(st.lists(NUMBERS, max_size=11), STREAMS, st.lists(st.floats(width=32), max_size=6), st.booleans())
@settings(max_examples=500, deadline=None)
def test_any_entry_is_sound_or_a_delta_error(head, stream, values, count_right):
    if count_right and len(head) > 1:
        head[1] = len(values)
    tensors = parts(head, stream, values)
    tensors[f"{STEM}.sara1_values"] = torch.tensor(values, dtype=torch.float32)
    try:
        name, entry = file_v1.decode(STEM, tensors.__getitem__)
    except DeltaError:
        return
    SparseDelta({name: entry})
    assert entry.indices.tolist() == reference(stream, len(values), math.prod(head[2:]))


def test_threads_work_only_a_few_entries_ahead():
    """Or a damaged entry, and who stops the reading, would wait for the whole file."""
    made = []
    results = file_v1._each(lambda number: made.append(number) or number, range(1000), file_v1._WORTH_THREADS)
    for taken, result in enumerate(results):
        assert result == taken and len(made) - taken <= file_v1._WAITING
    assert len(made) == 1000


def test_a_loaded_delta_does_not_depend_on_its_file_any_more(tmp_path):
    path = tmp_path / "x.safetensors"
    delta = SparseDelta({"a.weight": SparseEntry(torch.arange(4000, dtype=torch.int32), torch.ones(4000), (4000,))})
    delta.save(path)
    loaded = SparseDelta.load(path)
    # In place, so that a view of the mapped file would show it (and after truncation kill the process).
    with open(path, "r+b") as file:
        file.seek(-10_000, 2)
        file.write(bytes(10_000))
    assert torch.equal(loaded.entries["a.weight"].values, torch.ones(4000))


def test_plain_safetensors_tools_see_no_more_than_tensors(tmp_path):
    assert set(load_file(write(tmp_path / "x.safetensors", parts()))) == set(parts())
