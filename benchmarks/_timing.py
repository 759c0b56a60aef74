"""Timing of single functions."""

import time
from collections.abc import Callable

REPETITIONS = 3


def best_milliseconds(function: Callable[[], object]) -> float:
    """The fastest of a few calls, after one that warms up."""
    function()
    seconds = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds) * 1000
