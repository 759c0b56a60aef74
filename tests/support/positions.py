"""The positions of an entry out of a delta file's bytes, in the two steps in which the reader takes them."""

import numpy

from sara_core.delta.file_v1 import stream_positions, unpacked_stream


def unpacked_positions(packed: bytes, count: int, numel: int) -> numpy.ndarray:
    """The inverse of encode_indices: int32 [count]. Raises ValueError if the bytes say anything else."""
    return stream_positions(unpacked_stream(packed, count, numel), count, numel)
