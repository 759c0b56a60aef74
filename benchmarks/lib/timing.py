"""Timing of single functions."""

import time
from collections.abc import Callable

import torch

REPETITIONS = {"cpu": 3, "cuda": 20}


def best_milliseconds(function: Callable[[], object], device: str = "cpu") -> float:
    """The fastest of a few calls, after one that warms up. device: "cpu" or "cuda", where the function computes"""
    function()
    once = _on_the_gpu if device == "cuda" else _on_the_cpu
    return min(once(function) for _ in range(REPETITIONS[device]))


def _on_the_cpu(function) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1000


def _on_the_gpu(function) -> float:
    """Between events on the GPU's own clock; from an idle GPU on, so that what launching takes counts too."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)
