"""Positions that a file holds as they are: which, that earlier readers read them, and that we read earlier files."""

import zlib

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sara_core.delta import SparseDelta, SparseEntry, file_v1
from tests.support.positions import unpacked_positions


def earlier_reader(packed, count, numel):
    """As the first release read positions, step by step: what it reads today it must read for ever."""
    assert 0 <= count <= numel
    longest = count + (numel - count) // 255
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(packed, longest + 1)
    assert len(unpacked) <= longest and unpacker.eof and not unpacker.unused_data
    stream = numpy.frombuffer(unpacked, dtype=numpy.uint8)
    is_end = stream != 255
    assert numpy.count_nonzero(is_end) == count and (not len(stream) or is_end[-1])
    positions = (stream.astype(numpy.int64).cumsum() + is_end.cumsum() - 1)[is_end]
    assert not count or positions[-1] < numel
    return positions


def earlier_writer(indices):
    """As the first release wrote them: every one through zlib's Huffman-only strategy."""
    stream = bytearray()
    for gap in (numpy.diff(indices, prepend=numpy.int32(-1)) - 1).tolist():
        stream += b"\xff" * (gap // 255) + bytes([gap % 255])
    packer = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    return packer.compress(stream) + packer.flush()


def positions(numel, density, seed=0):
    return numpy.flatnonzero(numpy.random.default_rng(seed).random(numel) < density).astype(numpy.int32)


def is_stored(packed):
    """Whether the first block of zlib data is of the kind "stored" (RFC 1951, 3.2.3)."""
    return packed[2] & 0b110 == 0


# 0.06 of it is several of the blocks of at most 65,535 bytes that stored data is in.
NUMEL = 3_000_000
DENSITIES = {0.001: False, 0.006: False, 0.01: False, 0.013: True, 0.02: True, 0.06: True, 0.12: True, 0.2: False}


@pytest.mark.parametrize("density, stored", DENSITIES.items())
def test_readers_from_before_read_what_is_written_now(density, stored):
    indices = positions(NUMEL, density)
    packed = file_v1.encode_indices(indices)
    assert is_stored(packed) == stored
    assert numpy.array_equal(earlier_reader(packed, len(indices), NUMEL), indices)


@pytest.mark.parametrize("density", [0.001, 0.006, 0.06, 0.5])
def test_what_was_written_before_is_read_now(density):
    indices = positions(300_000, density)
    read = unpacked_positions(earlier_writer(indices), len(indices), 300_000)
    assert read.dtype == numpy.int32 and numpy.array_equal(read, indices)


@given(st.lists(st.integers(0, 700), max_size=80), st.integers(0, 600))
@settings(max_examples=200, deadline=None)
def test_any_positions_are_read_alike_by_all_readers(gaps, more):
    indices = (numpy.cumsum(gaps, dtype=numpy.int32) + numpy.arange(len(gaps), dtype=numpy.int32)).astype(numpy.int32)
    numel = (int(indices[-1]) + 1 if len(gaps) else 1) + more
    for packed in (file_v1.encode_indices(indices), earlier_writer(indices)):
        for read in (unpacked_positions, earlier_reader):
            assert read(packed, len(indices), numel).tolist() == indices.tolist()


@pytest.mark.parametrize("density", DENSITIES)
def test_a_file_stays_within_3_1_bytes_a_change_where_it_stores(tmp_path, density):
    entry = SparseEntry(torch.from_numpy(positions(NUMEL, density)), torch.zeros(1), (NUMEL,))
    count = len(entry.indices)
    delta = SparseDelta({"a.weight": entry._replace(values=torch.ones(count))})
    for dtype, value_bytes in ((torch.bfloat16, 2), (torch.float32, 4)):
        delta.save(tmp_path / "x.safetensors", dtype)
        # Below one per cent the positions alone have more than a byte of entropy; there the file is as small as ever.
        most = value_bytes + (1.1 if density >= 0.01 else 1.7)
        assert (tmp_path / "x.safetensors").stat().st_size <= most * count


def test_a_stored_index_that_was_changed_is_refused():
    """The stream is in the file in plain sight; its checksum and its lengths hold it together all the same."""
    indices = positions(1000, 0.06)
    packed = file_v1.encode_indices(indices)
    assert is_stored(packed)
    for place in range(len(packed)):
        spoilt = bytearray(packed)
        spoilt[place] ^= 1
        try:
            read = unpacked_positions(bytes(spoilt), len(indices), 1000)
        except ValueError:
            continue
        assert numpy.array_equal(read, indices), place


def test_the_first_position_may_be_0_or_far_away():
    for first in (0, 1, 254, 255, 256, 70_000):
        indices = first + numpy.arange(0, 200_000, 20, dtype=numpy.int32)
        packed = file_v1.encode_indices(indices)
        assert is_stored(packed) and numpy.array_equal(unpacked_positions(packed, 10_000, 300_000), indices)
